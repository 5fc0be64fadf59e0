"""Dataset of a trial: its fields, and the files or the repository that its name stands for."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass, fields
from pathlib import Path

HUB_ID_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DATASET_ID_PATTERN = re.compile(HUB_ID_PATTERN.pattern + r"(:[\w.-]+)?(@[\w./-]+)?")
"""Dataset of the Hub: `owner/name`, with a configuration and a revision."""
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")
FILE_SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Endings of the names of files that datasets are read from; a compressed one follows."""


@dataclass(frozen=True)
class DatasetSpec:
    """Dataset of a trial, and the parts of it that are used: fields of `TrialConfig`."""

    dataset: str
    text_column: str | None = None
    documents: str | None = None
    train_split: str | None = None
    validation_split: str | None = None
    max_documents: int | None = None

    @property
    def options(self) -> dict[str, str | int]:
        """The fields that are not None, without the name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        return {name: value for name, value in values.items() if value is not None}

    def __str__(self) -> str:
        """Return the name of the dataset with the other fields, for messages."""
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.dataset} ({options})" if options else self.dataset


DATASET_OPTIONS = tuple(field.name for field in fields(DatasetSpec))[1:]
"""Names of the fields beside the name. Files that were written before raylm had them lack them."""
CorpusKey = tuple[DatasetSpec, str]
"""Dataset and model: what a corpus is prepared from."""


def local_paths(name: str) -> list[Path]:
    """Return the file or folder of this name, or the files that match it as a pattern, sorted; empty if there are none.

    `~` is the home folder.
    """
    try:
        path = Path(name).expanduser()
        if path.exists():
            return [path]
        matches = glob.glob(str(path), recursive=True) if glob.has_magic(name) else []  # noqa: PTH207 (absolute too)
    except (OSError, RuntimeError, ValueError):  # no file can have this name, or there is no home
        return []
    return sorted(Path(match) for match in matches if Path(match).is_file())


def is_path(name: str) -> bool:
    """Return whether a name can only be that of files, not of the Hub's dataset."""
    base = name.partition("@")[0]
    looks_like_path = base.startswith((".", "/", "~")) or glob.has_magic(base) or base.count("/") > 1
    return looks_like_path or strip_compression(base.lower()).endswith(FILE_SUFFIXES)


def strip_compression(name: str) -> str:
    """Return the name of a file without the ending of its compression."""
    return next((name.removesuffix(suffix) for suffix in COMPRESSED_SUFFIXES if name.endswith(suffix)), name)
