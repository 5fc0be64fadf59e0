"""Text of tables: rows of a Hugging Face dataset, in memory-mapped Arrow or streamed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylm.config.dataset import DatasetSpec
from raylm.data.text import TextSplit, last_tenth_start
from raylm.errors import UserError

ROWS_PER_BATCH = 1_000
"""Rows of a memory-mapped table that are looked up at a time; their texts are read one by one."""
STREAMED_ROWS_PER_BATCH = 16
"""Rows of a stream that are looked up at a time, and in memory."""
VALIDATION_SPLITS = ("validation", "valid", "val", "dev")
"""Names of the validation split, in order of preference."""
STRING_TYPES = ("string", "large_string", "string_view")


@dataclass(frozen=True)
class FileRows:
    """Rows of local files, which are read anew for the column that is used."""

    types: Mapping[str, str]
    """Types of the columns by name."""
    read_column: Callable[[str], Iterator[Any]]
    """Function that yields Arrow tables of a few rows each with a column, and maybe others."""


@dataclass(frozen=True)
class TableTexts:
    """Texts of the rows of a table from one row to another. Iterable several times."""

    subject: str
    """Beginning of error messages, as `dataset me/texts`."""
    split: str
    rows: Any
    """A `datasets.Dataset`, a `datasets.IterableDataset` or a `FileRows`."""
    column: str
    start: int = 0
    stop: int | None = None
    guard: Callable[[Iterator[str]], Iterator[str]] = iter
    """Wrapper of the iteration, which replaces errors of the reading library."""

    def __iter__(self) -> Iterator[str]:
        return self.guard(self._iter_texts())

    def _iter_texts(self) -> Iterator[str]:
        number = self.start
        for value in itertools.islice(self._iter_values(), self._skipped, self._limit):
            if value is None:
                advice = f"remove such rows, as by `dataset.filter(lambda row: row[{self.column!r}] is not None)`"
                raise UserError(f"{self.subject}: row {number:,} of the {self.split} split has no text; {advice}")
            if not isinstance(value, str):
                expected = f"expected a string in column {self.column}"
                raise UserError(
                    f"{self.subject}: row {number:,} of the {self.split} split is {value!r:.40}; {expected}"
                )
            yield value
            number += 1

    @property
    def _is_indexed(self) -> bool:
        """True for a `datasets.Dataset`, False for a stream."""
        return hasattr(self.rows, "num_rows")

    @property
    def _skipped(self) -> int:
        return 0 if self._is_indexed else self.start

    @property
    def _limit(self) -> int | None:
        return None if self._is_indexed else self.stop

    def _iter_values(self) -> Iterator[Any]:
        for table in self._iter_tables():
            for value in table[self.column]:
                yield value.as_py()

    def _iter_tables(self) -> Iterator[Any]:
        if isinstance(self.rows, FileRows):
            return self.rows.read_column(self.column)
        if self._is_indexed:
            rows = self.rows.select_columns([self.column]).select(range(self.start, self._stop()))
            return iter_tables(rows, ROWS_PER_BATCH)
        return iter_tables(self.rows)

    def _stop(self) -> int:
        return len(self.rows) if self.stop is None else min(self.stop, len(self.rows))

    def count(self) -> int:
        """Return the number of rows; a stream is read for it."""
        return self._stop() - self.start if self._is_indexed else sum(1 for _ in self)

    def between(self, start: int, stop: int | None) -> TableTexts:
        """Return the texts of other rows."""
        return TableTexts(self.subject, self.split, self.rows, self.column, start, stop, self.guard)


def build_splits(
    subject: str,
    splits: Mapping[str, Any],
    spec: DatasetSpec,
    guard: Callable[[Iterator[str]], Iterator[str]] = iter,
) -> tuple[TextSplit, TextSplit, TextSplit | None]:
    """Return the train, validation and test split of tables, each row a document.

    Args:
        subject: beginning of error messages.
        splits: tables by name, as of a `datasets.DatasetDict`.
        spec: fields of the trial.
        guard: wrapper of each iteration over texts.

    Raises:
        UserError: if a split or the column of text is missing.
    """
    if spec.documents is not None:
        raise UserError(f"{subject}: documents={spec.documents!r} is for text files; each row of a table is a document")
    train_name, validation_name, test_name = choose_splits(subject, list(splits), spec)
    column = choose_column(subject, train_name, splits[train_name], spec.text_column)
    if test_name is not None and column_types(splits[test_name]).get(column) not in STRING_TYPES:
        test_name = None  # often published without text
    names = [name for name in (train_name, validation_name, test_name) if name is not None]
    _check_columns(subject, column, {name: splits[name] for name in names})
    texts = {name: TableTexts(subject, name, splits[name], column, guard=guard) for name in names}
    train = texts[train_name].between(0, spec.max_documents)
    test = None if test_name is None else TextSplit.of_documents(texts[test_name])
    if validation_name is not None:
        return TextSplit.of_documents(train), TextSplit.of_documents(texts[validation_name]), test
    number = train.count()
    if number < 2:
        found = "1 row" if number else "no rows"
        raise UserError(f"{subject} has {found}; expected at least 2: its last tenth is validation")
    cut = last_tenth_start(number)
    return TextSplit.of_documents(train.between(0, cut)), TextSplit.of_documents(train.between(cut, number)), test


def choose_splits(subject: str, names: Sequence[str], spec: DatasetSpec) -> tuple[str, str | None, str | None]:
    """Return the names of the train, the validation and the test split.

    Raises:
        UserError: if one that is needed or named in a field is missing.
    """
    train = spec.train_split or "train"
    validation = spec.validation_split or next((name for name in VALIDATION_SPLITS if name in names), None)
    existing = f"it has {', '.join(names)}"
    if train not in names:
        raise UserError(f"{subject} has no {train} split; {existing}; name the one to train on in train_split")
    if validation is not None and validation not in names:
        raise UserError(f"{subject} has no {validation} split; {existing}; correct validation_split")
    if validation == train:
        raise UserError(f"{subject}: train_split and validation_split are both {train}; expected two splits")
    test = "test" if "test" in names and "test" not in (train, validation) else None
    return train, validation, test


def choose_column(subject: str, split: str, rows: Any, text_column: str | None) -> str:
    """Return the name of the column that holds the text of a split.

    Raises:
        UserError: if it is missing or not of strings, or there are several.
    """
    types = column_types(rows)
    texts = [name for name, kind in types.items() if kind in STRING_TYPES]
    column = text_column or ("text" if "text" in texts else texts[0] if len(texts) == 1 else None)
    if column in texts:
        return column
    if column in types:
        problem = f"column {column} of its {split} split is not of strings"
    elif column is not None:
        problem = f"its {split} split has no column {column}"
    elif texts:
        problem = f"its {split} split has several columns of strings; name the one to train on in text_column"
    else:
        problem = f"its {split} split has no column `text` of strings"
    raise UserError(f"{subject}: {problem}; it has {format_columns(types) or 'no columns'}")


def _check_columns(subject: str, column: str, splits: Mapping[str, Any]) -> None:
    """Check that all splits have the column of text.

    Raises:
        UserError: if one lacks it.
    """
    types = {name: column_types(rows) for name, rows in splits.items()}
    if any(kinds.get(column) not in STRING_TYPES for kinds in types.values()):
        existing = "; ".join(f"{name} {format_columns(kinds)}" for name, kinds in types.items())
        raise UserError(f"{subject}: its splits have different columns: {existing}; expected strings in {column}")


def iter_tables(rows: Any, batch_size: int = STREAMED_ROWS_PER_BATCH) -> Iterator[Any]:
    """Yield a `datasets.Dataset` or `datasets.IterableDataset` as Arrow tables."""
    tables: Iterator[Any] = rows.with_format("arrow").iter(batch_size=batch_size)
    return tables


def format_columns(types: Mapping[str, str]) -> str:
    """Return the columns of a table with their types, for messages."""
    return ", ".join(f"{name} ({kind})" for name, kind in types.items())


def column_types(rows: Any) -> dict[str, str]:
    """Return the types of a table's columns by name; of a stream, those of its first row."""
    if isinstance(rows, FileRows):
        return dict(rows.types)
    if rows.features is not None:
        types = {name: getattr(feature, "dtype", "nested") for name, feature in rows.features.items()}
    else:
        table = next(iter(rows.with_format("arrow").iter(batch_size=1)), None)
        types = {} if table is None else {field.name: str(field.type) for field in table.schema}
    return {name: "nested" if "<" in kind else str(kind) for name, kind in types.items()}  # struct<...>, list<...>
