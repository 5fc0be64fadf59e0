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

CLEANING = "1"
"""Changes whenever the same source gives other text; part of every fingerprint."""
IMDB_SHUFFLE_SEED = 0
PIECE_CHARACTERS = 100_000
VALIDATION_SPLITS = ("validation", "valid", "dev")


@dataclass(frozen=True)
class Source:
    """A dataset, found: what its text follows from, before any of it is read."""

    name: str
    """As the sweep names it."""
    kind: str
    """`pydocs`, `hub` or `file`."""
    identity: str
    """Commit or content hash: two sources with the same identity have the same text."""
    hub_id: str = ""
    config: str | None = None


@dataclass(frozen=True)
class Split:
    """The text of one split."""

    pieces: Sequence[str]
    words: int
    """Words of the original text, before cleaning."""
    documents: bool
    """Whether each piece is a document, to be ended by the end-of-text token."""


def locate(dataset: str) -> Source:
    """Finds a dataset; asks the hub for a commit at most.

    Raises:
        UserError: if it cannot be found or read.
    """
    known = DATASETS.get(dataset)
    if dataset == "pydocs":
        return Source(dataset, "pydocs", _digest(_pydocs_topics()))
    if known is None and Path(dataset).exists():
        return Source(dataset, "file", _digest(path.read_bytes() for path in _local_files(Path(dataset))))
    hub_id, _, config = dataset.partition(":")
    if known is not None and known.hub_id is not None:
        hub_id, config = known.hub_id, known.config or ""
    return Source(dataset, "hub", hub.current_commit(hub_id, "dataset"), hub_id, config or None)


def read(source: Source) -> tuple[Split, Split]:
    """The train and the validation split.

    Raises:
        UserError: if the dataset has no such splits, no column of text, or cannot be fetched or decoded.
    """
    if source.kind == "pydocs":
        train, validation = _last_tenth(_pydocs_topics())
        return _documents(train), _documents(validation)
    if source.kind == "file":
        return _read_local(Path(source.name))
    splits = _fetch(source)
    if source.name in ("wikitext2", "wikitext103"):
        return _wikitext(splits["train"]), _wikitext(splits["validation"])
    if source.name == "imdb":
        return _imdb([*splits["train"], *splits["test"]])
    if "validation" in splits:
        return _documents(splits["train"]), _documents(splits["validation"])
    train, validation = _last_tenth(splits["train"])
    return _documents(train), _documents(validation)


def _digest(contents: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        data = content.encode() if isinstance(content, str) else content
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def _last_tenth(items: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    cut = len(items) - max(1, len(items) // 10)
    return items[:cut], items[cut:]


def _documents(texts: Sequence[str]) -> Split:
    return Split(texts, sum(len(text.split()) for text in texts), documents=True)


def _lines(lines: Sequence[str], words: int) -> Split:
    """One stream: the lines with a break after each, cut before line breaks into pieces of a handy size."""
    return Split(list(_joined(lines)), words, documents=False)


def _joined(lines: Sequence[str]) -> Iterator[str]:
    piece: list[str] = []
    size = 0
    for number, line in enumerate(lines):
        # a piece never ends in white space: a run of it may be one token
        if size > PIECE_CHARACTERS and not piece[-1][-1].isspace():
            yield "".join(piece)
            piece, size = [], 0
        piece.append(f"\n{line}" if number else line)
        size += len(line) + 1
    yield "".join(piece) + "\n"


def _pydocs_topics() -> list[str]:
    """The help topics that `help()` shows, which every CPython carries, in sorted order."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


# ---- the hub ------------------------------------------------------------------------------------------------------


def _fetch(source: Source) -> dict[str, list[str]]:
    """The texts of the splits that are needed, by `train`, `validation` and `test`."""
    import datasets

    datasets.disable_progress_bars()
    what = f"dataset {source.name}"
    loaded = hub.ask(lambda: datasets.load_dataset(source.hub_id, source.config, revision=source.identity), what)
    wanted = {"train": ("train",), "validation": VALIDATION_SPLITS}
    needed = {"train"}
    if source.name == "imdb":
        wanted, needed = {"train": ("train",), "test": ("test",)}, {"train", "test"}
    elif source.name in ("wikitext2", "wikitext103"):
        needed = {"train", "validation"}
    found = {name: next((key for key in keys if key in loaded), None) for name, keys in wanted.items()}
    if missing := [name for name in needed if found[name] is None]:
        raise UserError(f"{what} has no {' and no '.join(sorted(missing))} split; it has {', '.join(loaded)}")
    return {name: _texts(what, key, loaded[key]) for name, key in found.items() if key is not None}


def _texts(what: str, split: str, rows: Any) -> list[str]:
    columns = {name: str(getattr(feature, "dtype", "nested")) for name, feature in rows.features.items()}
    if columns.get("text") not in ("string", "large_string"):
        listed = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise UserError(f"{what} has no column `text` of strings in its {split} split; it has {listed}")
    texts = list(rows["text"])
    if None in texts:
        raise UserError(f"{what}: row {texts.index(None)} of the {split} split has no text")
    return texts


def _imdb(reviews: Sequence[str]) -> tuple[Split, Split]:
    """All labelled reviews, shuffled, 90 % to train on and 10 % to validate on."""
    order = np.random.default_rng(IMDB_SHUFFLE_SEED).permutation(len(reviews))
    train, validation = _last_tenth([reviews[i] for i in order])
    return _documents(train), _documents(validation)


def _wikitext(rows: Sequence[str]) -> Split:
    """WikiText counts a word (`<eos>`) a line beside those between white space: 217,646 for its validation split."""
    words = sum(len(row.split()) for row in rows) + len(rows)
    return _lines([detokenize_wikitext(row) for row in rows], words)


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


def _local_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [path / "train.txt", path / "validation.txt"]


def _read_local(path: Path) -> tuple[Split, Split]:
    texts = [_decoded(file) for file in _local_files(path)]
    if len(texts) == 2:
        train, validation = (text.splitlines() for text in texts)
    else:
        lines = texts[0].splitlines()
        if len(lines) < 2:
            raise UserError(f"dataset {path} has {len(lines)} lines; expected at least 2: its last tenth is validation")
        train, validation = map(list, _last_tenth(lines))
    for name, lines in (("train", train), ("validation", validation)):
        if not any(line.strip() for line in lines):
            raise UserError(f"dataset {path}: its {name} split has no text")
    return tuple(_lines(lines, sum(len(line.split()) for line in lines)) for lines in (train, validation))  # type: ignore[return-value]


def _decoded(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"dataset {file} is not UTF-8 text: byte {error.start} is wrong") from None
    except OSError as error:
        raise UserError(f"dataset {file} cannot be read: {error.strerror}") from None
