"""Datasets in local files: text, tables, and folders of them."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylm.config.dataset import COMPRESSED_SUFFIXES, DatasetSpec, local_paths, strip_compression
from raylm.data import table_files, tables
from raylm.data.table_files import TableFiles
from raylm.data.text import (
    BLOCK_BYTES,
    OLD_LINE_ENDS,
    Lazy,
    Piece,
    TextFile,
    TextSplit,
    check_compression,
    last_tenth_start,
)
from raylm.errors import UserError

FORMS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
"""Forms of files by the endings of their names. A single file with another ending is text."""
SPLIT_NAME = re.compile(r"(train|validation|valid|val|dev|test)(?![a-z0-9])", re.IGNORECASE)
"""Beginning of the name of a file, or name of a folder, that holds a split."""
SAVED_MARKERS = ("dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` wrote."""

TextSplits = tuple[TextSplit, TextSplit, TextSplit | None]
"""Train, validation and test split."""


@dataclass(frozen=True)
class LocalFiles:
    """Files of a dataset, by split."""

    spec: DatasetSpec
    form: str
    """`text`, `json`, `csv`, `tsv`, `parquet`, or `saved` by `save_to_disk`."""
    splits: Mapping[str, Sequence[Path]]
    """Files of each split; those of a dataset without splits are its `train`."""

    @property
    def subject(self) -> str:
        """Beginning of error messages."""
        return f"dataset {self.spec.dataset}"


def find(spec: DatasetSpec) -> LocalFiles | None:
    """Return the files of a dataset, or None if there are none of its name.

    Raises:
        UserError: if a folder has no files to read, or files of several forms, or the name is not that of a file.
    """
    paths = local_paths(spec.dataset)
    if not paths:
        return None
    for path in paths:
        if not (path.is_file() or path.is_dir()):  # a pipe can be read only once
            raise UserError(f"dataset {path} is not a file; write what it gives to a file, and name that")
        check_compression(path)
    if len(paths) == 1 and paths[0].is_file():
        return LocalFiles(spec, _find_form(paths[0]) or "text", {"train": paths})
    if paths[0].is_dir():
        folder = paths[0]
        if any((folder / marker).is_file() for marker in SAVED_MARKERS):
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            return LocalFiles(spec, "saved", {"train": files})
        splits = _find_splits(folder)
    else:
        splits = {"train": paths}
    forms = {_find_form(path) or "text" for files in splits.values() for path in files}
    if len(forms) != 1:
        found = f"files of several forms: {', '.join(sorted(forms))}" if forms else "no files to read"
        expected = f"files that end in {', '.join(FORMS)}, or these with {', '.join(COMPRESSED_SUFFIXES)}"
        advice = f"or name text files by a pattern, as {str(paths[0] / '*.md')!r}"
        raise UserError(f"dataset {spec.dataset} has {found}; expected {expected}, {advice}")
    return LocalFiles(spec, forms.pop(), splits)


def _find_form(path: Path) -> str | None:
    return FORMS.get(Path(strip_compression(path.name.lower())).suffix)


def _find_splits(folder: Path) -> dict[str, list[Path]]:
    """Return the files of a folder by split: by their names, or those of their folders, else all as `train`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _find_form(path) is not None)
    files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    splits: dict[str, list[Path]] = {}
    for path in files:
        if match := SPLIT_NAME.match(path.relative_to(folder).parts[0]):
            splits.setdefault(match[1].lower(), []).append(path)
    if "train" not in splits and sum(map(len, splits.values())) < len(files):
        return {"train": files}
    return {name: splits[name] for name in ("train", *sorted(splits, reverse=True)) if name in splits}


def compute_revision(files: LocalFiles, names: Collection[str]) -> str:
    """Return the hash of the bytes of all files of some splits. Reads each file once, in blocks."""
    digest = hashlib.sha256()
    for path in itertools.chain.from_iterable(paths for name, paths in files.splits.items() if name in names):
        try:
            digest.update(path.stat().st_size.to_bytes(8, "big"))
            with path.open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"dataset {path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def describe_reading(files: LocalFiles) -> str:
    """Return how the bytes of the files become text; an empty string if as in earlier versions of raylm.

    Files of equal bytes give other text under other names: rows of a table or lines, one split or another.
    """
    if _reads_as_before(files):
        return ""
    return ", ".join([files.form, *(f"{len(paths)} of {name}" for name, paths in files.splits.items())])


def train_bytes(files: LocalFiles) -> int:
    """Return the size of the files of the train split."""
    names = files.splits.get(files.spec.train_split or "train", [])
    return sum(path.stat().st_size for path in names)


def _reads_as_before(files: LocalFiles) -> bool:
    """Return whether text files give the text that earlier versions of raylm read from them.

    They replaced all line ends of `str.splitlines` by line feeds, added one at the end, and read a byte order mark as
    text. Tables, and folders and options that they did not know, have no earlier reading.
    """
    known_splits = [name for name in files.splits if name != "test"] in (["train"], ["train", "validation"])
    if files.form != "text" or not known_splits or files.spec.options:
        return False
    if any(len(paths) != 1 for paths in files.splits.values()):
        return False
    return all(_has_only_line_feeds(paths[0]) for name, paths in files.splits.items() if name != "test")


def _has_only_line_feeds(path: Path) -> bool:
    tail = b""
    for block in TextFile(path).read_blocks():
        if tail == b"" and block.startswith(codecs.BOM_UTF8):
            return False
        if OLD_LINE_ENDS.search(tail + block):
            return False
        tail = block[-2:]
    return tail.endswith(b"\n")


def read_splits(files: LocalFiles) -> TextSplits:
    """Return the splits of a dataset in local files.

    Raises:
        UserError: if a split is missing, or a file cannot be read.
    """
    if files.form == "text":
        return _read_texts(files)
    if files.form == "saved":
        folder = local_paths(files.spec.dataset)[0]
        return tables.build_splits(files.subject, table_files.load_saved(files.subject, folder), files.spec)
    table = TableFiles(files.subject, files.form, files.splits)
    return tables.build_splits(files.subject, table.open(), files.spec, table.guard)


# ---- text ---------------------------------------------------------------------------------------------------------


def _read_texts(files: LocalFiles) -> TextSplits:
    spec, subject = files.spec, files.subject
    if spec.text_column is not None:
        raise UserError(f"{subject} is text without columns; leave text_column at None")
    names = tables.choose_splits(subject, list(files.splits), spec)
    train, validation, test = ([TextFile(path) for path in files.splits[name]] if name else None for name in names)
    assert train is not None
    documents = spec.documents or ("file" if len(train) > 1 else None)
    if documents is not None:
        return _split_documents(files, documents, train, validation, test)
    if spec.max_documents is not None:
        raise UserError(f"{subject} is one stream without documents; set documents='line' or 'blank-line'")
    if validation is None:
        train, validation = ([part] for part in train[0].split_last_tenth())
    return _stream(train), _stream(validation), None if test is None else _stream(test)


def _stream(files: Sequence[TextFile]) -> TextSplit:
    return TextSplit.of_stream(lambda: itertools.chain.from_iterable(file.iter_pieces() for file in files))


def _split_documents(
    files: LocalFiles,
    documents: str,
    train: Sequence[TextFile],
    validation: Sequence[TextFile] | None,
    test: Sequence[TextFile] | None,
) -> TextSplits:
    """Return splits of documents: all of them, or the last tenth of those of the train split."""

    def split(files: Sequence[TextFile], start: int = 0, stop: int | None = None) -> TextSplit:
        texts = Lazy(lambda: itertools.islice(_iter_documents(files, documents), start, stop))
        return TextSplit(texts, is_documents=True)

    limit = files.spec.max_documents
    test_split = None if test is None else split(test)
    if validation is not None:
        return split(train, 0, limit), split(validation), test_split
    number = sum(1 for _ in itertools.islice(_iter_documents(train, documents), limit))
    if number < 2:
        found = "1 document" if number else "no documents"
        raise UserError(f"{files.subject} has {found}; expected at least 2: its last tenth is validation")
    cut = last_tenth_start(number)
    return split(train, 0, cut), split(train, cut, number), test_split


def _iter_documents(files: Sequence[TextFile], documents: str) -> Iterator[Iterable[Piece]]:
    """Yield the documents of files: each file, or their lines or paragraphs that are not blank, without line ends."""
    for file in files:
        if documents == "file":
            yield Lazy(file.iter_pieces)
        else:
            for text in _iter_paragraphs(file, is_line=documents == "line"):
                yield [Piece.from_text(text)]


def _iter_paragraphs(file: TextFile, *, is_line: bool) -> Iterator[str]:
    lines: list[str] = []
    for line in file.iter_lines():
        if line.strip():
            lines.append(line)
        if lines and (is_line or not line.strip()):
            yield "".join(lines).rstrip("\r\n")
            lines = []
    if lines:
        yield "".join(lines).rstrip("\r\n")
