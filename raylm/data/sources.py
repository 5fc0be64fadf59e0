"""Text sources and their cleaning: the documentation in every Python, the Hugging Face Hub, local files.

A split is a list of pieces of text. A split of documents has one piece per document. A split that is one stream of
lines is cut into pieces whose concatenation is the stream; each but the first starts with its line break. GPT-2's
tokenizers never join characters across such a cut, so that pieces can be tokenized one by one.
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
from raylm.files import UnreadableTextError, read_utf8

CLEANING_VERSION = "1"
"""Version of the cleaning rules; part of every fingerprint."""
IMDB_SHUFFLE_SEED = 0
MIN_PIECE_CHARACTERS = 100_000
"""Characters after which a stream of lines may be cut."""
VALIDATION_SPLITS = ("validation", "valid", "dev")
"""Names of the validation split on the Hub, in order of preference."""


@dataclass(frozen=True)
class Source:
    """Identity of a dataset's text, known before any of it is read. Equal sources have equal text."""

    name: str
    """Name of the dataset in a sweep."""
    kind: str
    """`pydocs`, `hub` or `file`."""
    revision: str
    """Commit of a Hub repository, or hash of the text."""
    hub_id: str = ""
    """Repository on the Hub, as `owner/name`."""
    config_name: str | None = None
    """Configuration ("subset") of the repository."""


@dataclass(frozen=True)
class TextSplit:
    """Text of one split."""

    pieces: Sequence[str]
    num_words: int
    """Number of words of the original text, before cleaning."""
    is_documents: bool
    """True if each piece is a document, which is followed by the end-of-text token."""


def resolve_source(dataset: str) -> Source:
    """Return the source of a dataset. From the Hub, only the current commit is requested.

    Raises:
        UserError: if the dataset cannot be found or read.
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
    """Return the train and the validation split.

    Raises:
        UserError: if the dataset lacks one of these splits or a text column, or cannot be fetched or decoded.
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
    """Return one stream: each line followed by a line break, cut into pieces before line breaks."""
    return TextSplit(list(_join_lines(lines)), num_words, is_documents=False)


def _join_lines(lines: Sequence[str]) -> Iterator[str]:
    piece: list[str] = []
    size = 0
    for number, line in enumerate(lines):
        # not after white space: a run of it may be one token
        if size > MIN_PIECE_CHARACTERS and not piece[-1][-1].isspace():
            yield "".join(piece)
            piece, size = [], 0
        piece.append(f"\n{line}" if number else line)
        size += len(line) + 1
    yield "".join(piece) + "\n"


def _load_pydocs_topics() -> list[str]:
    """Return the help topics of `help()`, which are part of every CPython, sorted by name."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


# ---- the hub ------------------------------------------------------------------------------------------------------


def _fetch_hub_texts(source: Source) -> dict[str, list[str]]:
    """Return the texts of the required splits, by `train`, `validation` and `test`."""
    import datasets

    datasets.disable_progress_bars()
    subject = f"dataset {source.name}"
    loaded = hub.call_with_retries(
        lambda: datasets.load_dataset(source.hub_id, source.config_name, revision=source.revision), subject
    )
    candidates = {"train": ("train",), "validation": VALIDATION_SPLITS}
    required = {"train"}
    if source.name == "imdb":
        candidates, required = {"train": ("train",), "test": ("test",)}, {"train", "test"}
    elif source.name in ("wikitext2", "wikitext103"):
        required = {"train", "validation"}
    keys = {name: next((key for key in options if key in loaded), None) for name, options in candidates.items()}
    if missing := [name for name in required if keys[name] is None]:
        raise UserError(f"{subject} has no {' and no '.join(sorted(missing))} split; it has {', '.join(loaded)}")
    return {name: _read_text_column(subject, key, loaded[key]) for name, key in keys.items() if key is not None}


def _read_text_column(subject: str, split_name: str, rows: Any) -> list[str]:
    columns = {name: str(getattr(feature, "dtype", "nested")) for name, feature in rows.features.items()}
    if columns.get("text") not in ("string", "large_string"):
        existing = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise UserError(f"{subject} has no column `text` of strings in its {split_name} split; it has {existing}")
    texts = list(rows["text"])
    if None in texts:
        raise UserError(f"{subject}: row {texts.index(None)} of the {split_name} split has no text")
    return texts


def _build_imdb_splits(reviews: Sequence[str]) -> tuple[TextSplit, TextSplit]:
    """Return all labelled reviews, shuffled with a fixed seed: 90 % to train on and 10 % to validate on."""
    order = np.random.default_rng(IMDB_SHUFFLE_SEED).permutation(len(reviews))
    train, validation = _split_last_tenth([reviews[i] for i in order])
    return _build_document_split(train), _build_document_split(validation)


def _build_wikitext_split(rows: Sequence[str]) -> TextSplit:
    """Return the detokenized rows as one stream.

    WikiText counts one word (`<eos>`) per line in addition to those between white space: 217,646 in its validation
    split.
    """
    num_words = sum(len(row.split()) for row in rows) + len(rows)
    return _build_line_split([detokenize_wikitext(row) for row in rows], num_words)


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
    """Return a row of the tokenized WikiText in its original spelling, as far as rules restore it; `<unk>` stays."""
    text = row.strip()
    for pattern, replacement in _WIKITEXT_RULES:
        text = pattern.sub(replacement, text)
    return text


# ---- local files --------------------------------------------------------------------------------------------------


def _list_local_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [path / "train.txt", path / "validation.txt"]


def _read_local_splits(path: Path) -> tuple[TextSplit, TextSplit]:
    texts = [_read_text(file) for file in _list_local_files(path)]
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
    train_split, validation_split = (
        _build_line_split(lines, sum(len(line.split()) for line in lines)) for lines in (train, validation)
    )
    return train_split, validation_split


def _read_text(file: Path) -> str:
    try:
        return read_utf8(file)
    except UnreadableTextError as error:
        raise UserError(f"dataset {file} {error}") from None
