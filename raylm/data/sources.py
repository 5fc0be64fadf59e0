"""Where text comes from: the embedded documentation, the Hugging Face Hub, local files; and how it is cleaned.

A split is a list of pieces. A split of documents has one piece a document; a split that is one stream of lines has
pieces that give the stream when put together, each but the first starting with its line break. Tokenizers of the
GPT-2 kind never join characters across a line break that way, so pieces can be tokenised one by one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raylm.config.catalog import DATASETS
from raylm.data import hub
from raylm.errors import UserError

CLEANING_VERSION = "1"
"""Changes whenever the same source gives other text; part of every fingerprint."""
IMDB_SHUFFLE_SEED = 0
MIN_PIECE_CHARACTERS = 100_000
VALIDATION_SPLITS = ("validation", "valid", "dev")


@dataclass(frozen=True)
class Source:
    """A dataset, found: what its text follows from, before any of it is read."""

    name: str
    """As the sweep names it."""
    kind: str
    """`pydocs`, `hub` or `file`."""
    revision: str
    """Commit or content hash: two sources with the same identity have the same text."""
    hub_id: str = ""
    config_name: str | None = None


@dataclass(frozen=True)
class TextSplit:
    """The text of one split."""

    pieces: Sequence[str]
    num_words: int
    """Words of the original text, before cleaning."""
    is_documents: bool
    """Whether each piece is a document, to be ended by the end-of-text token."""


def resolve_source(dataset: str) -> Source:
    """Finds a dataset; asks the hub for a commit at most.

    Raises:
        UserError: if it cannot be found or read.
    """
    known = DATASETS.get(dataset)
    if dataset == "pydocs":
        return Source(dataset, "pydocs", _hash_contents(_load_pydocs_topics()))
    if known is None and Path(dataset).exists():
        return Source(dataset, "file", _hash_contents(path.read_bytes() for path in _list_local_files(Path(dataset))))
    hub_id, _, config = dataset.partition(":")
    if known is not None and known.hub_id is not None:
        hub_id, config = known.hub_id, known.config_name or ""
    return Source(dataset, "hub", hub.resolve_commit(hub_id, "dataset"), hub_id, config or None)


def read_splits(source: Source) -> tuple[TextSplit, TextSplit]:
    """The train and the validation split.

    Raises:
        UserError: if the dataset has no such splits, no column of text, or cannot be fetched or decoded.
    """
    if source.kind == "pydocs":
        train, validation = _split_last_tenth(_load_pydocs_topics())
        return _build_document_split(train), _build_document_split(validation)
    if source.kind == "file":
        return _read_local_splits(Path(source.name))
    splits = _fetch_hub_texts(source)
    if source.name in ("wikitext2", "wikitext103"):
        return _build_wikitext_split(splits["train"]), _build_wikitext_split(splits["validation"])
    if source.name == "imdb":
        return _build_imdb_splits([*splits["train"], *splits["test"]])
    if "validation" in splits:
        return _build_document_split(splits["train"]), _build_document_split(splits["validation"])
    train, validation = _split_last_tenth(splits["train"])
    return _build_document_split(train), _build_document_split(validation)


def _hash_contents(contents: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        data = content.encode() if isinstance(content, str) else content
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _split_last_tenth(items: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    cut = len(items) - max(1, len(items) // 10)
    return items[:cut], items[cut:]


def _build_document_split(texts: Sequence[str]) -> TextSplit:
    return TextSplit(texts, sum(len(text.split()) for text in texts), is_documents=True)


def _build_line_split(lines: Sequence[str], num_words: int) -> TextSplit:
    """One stream: the lines with a break after each, cut before line breaks into pieces of a handy size."""
    return TextSplit(list(_join_lines(lines)), num_words, is_documents=False)


def _join_lines(lines: Sequence[str]) -> Iterator[str]:
    piece: list[str] = []
    size = 0
    for number, line in enumerate(lines):
        # a piece never ends in white space: a run of it may be one token
        if size > MIN_PIECE_CHARACTERS and not piece[-1][-1].isspace():
            yield "".join(piece)
            piece, size = [], 0
        piece.append(f"\n{line}" if number else line)
        size += len(line) + 1
    yield "".join(piece) + "\n"


def _load_pydocs_topics() -> list[str]:
    """The help topics that `help()` shows, which every CPython carries, in sorted order."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


# ---- the hub ------------------------------------------------------------------------------------------------------


def _fetch_hub_texts(source: Source) -> dict[str, list[str]]:
    """The texts of the splits that are needed, by `train`, `validation` and `test`."""
    import datasets

    datasets.disable_progress_bars()
    what = f"dataset {source.name}"
    loaded = hub.call_with_retries(
        lambda: datasets.load_dataset(source.hub_id, source.config_name, revision=source.revision), what
    )
    wanted = {"train": ("train",), "validation": VALIDATION_SPLITS}
    needed = {"train"}
    if source.name == "imdb":
        wanted, needed = {"train": ("train",), "test": ("test",)}, {"train", "test"}
    elif source.name in ("wikitext2", "wikitext103"):
        needed = {"train", "validation"}
    found = {name: next((key for key in keys if key in loaded), None) for name, keys in wanted.items()}
    if missing := [name for name in needed if found[name] is None]:
        raise UserError(f"{what} has no {' and no '.join(sorted(missing))} split; it has {', '.join(loaded)}")
    return {name: _read_text_column(what, key, loaded[key]) for name, key in found.items() if key is not None}


def _read_text_column(subject: str, split_name: str, rows: Any) -> list[str]:
    columns = {name: str(getattr(feature, "dtype", "nested")) for name, feature in rows.features.items()}
    if columns.get("text") not in ("string", "large_string"):
        listed = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise UserError(f"{subject} has no column `text` of strings in its {split_name} split; it has {listed}")
    texts = list(rows["text"])
    if None in texts:
        raise UserError(f"{subject}: row {texts.index(None)} of the {split_name} split has no text")
    return texts


def _build_imdb_splits(reviews: Sequence[str]) -> tuple[TextSplit, TextSplit]:
    """All labelled reviews, shuffled, 90 % to train on and 10 % to validate on."""
    order = np.random.default_rng(IMDB_SHUFFLE_SEED).permutation(len(reviews))
    train, validation = _split_last_tenth([reviews[i] for i in order])
    return _build_document_split(train), _build_document_split(validation)


def _build_wikitext_split(rows: Sequence[str]) -> TextSplit:
    """WikiText counts a word (`<eos>`) a line beside those between white space: 217,646 for its validation split."""
    words = sum(len(row.split()) for row in rows) + len(rows)
    return _build_line_split([detokenize_wikitext(row) for row in rows], words)


_WIKITEXT_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r" @([-,.])@ ", r"\1"),  # 1 @,@ 000, well @-@ known
        (r"(?<==) (?==)", ""),  # = = Heading = =
        (r" '(s|t|re|ve|ll|d|m)\b", r"'\1"),  # it 's, don 't
        (r"(?<=s) '(?= |$)", "'"),  # the lobsters ' claws
        (r'" ([^"]*?) ?"', r'"\1"'),  # " quoted "
        (r"(?<= )' ([^']*?) '", r"'\1'"),  # ' quoted '
        (r"([(\[{]) ", r"\1"),
        (r" (?=[)\]}.,;:!?%])", ""),
        (r"([$£€#]) (?=\d)", r"\1"),
        (r" (?=[°′″])", ""),
    ]
]


def detokenize_wikitext(row: str) -> str:
    """A row of the tokenised WikiText as it was written, as far as this can be told; `<unk>` stays."""
    text = row.strip()
    for pattern, replacement in _WIKITEXT_RULES:
        text = pattern.sub(replacement, text)
    return text


# ---- local files --------------------------------------------------------------------------------------------------


def _list_local_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [path / "train.txt", path / "validation.txt"]


def _read_local_splits(path: Path) -> tuple[TextSplit, TextSplit]:
    texts = [_read_utf8(file) for file in _list_local_files(path)]
    if len(texts) == 2:
        train, validation = (text.splitlines() for text in texts)
    else:
        lines = texts[0].splitlines()
        if len(lines) < 2:
            raise UserError(f"dataset {path} has {len(lines)} lines; expected at least 2: its last tenth is validation")
        train, validation = map(list, _split_last_tenth(lines))
    for name, lines in (("train", train), ("validation", validation)):
        if not any(line.strip() for line in lines):
            raise UserError(f"dataset {path}: its {name} split has no text")
    return tuple(_build_line_split(lines, sum(len(line.split()) for line in lines)) for lines in (train, validation))  # type: ignore[return-value]


def _read_utf8(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"dataset {file} is not UTF-8 text: byte {error.start} is wrong") from None
    except OSError as error:
        raise UserError(f"dataset {file} cannot be read: {error.strerror}") from None
