"""Columns of tables, chosen in one place for every output: terminal, Markdown, LaTeX, CSV, JSON, pages, plans, bars.

The columns of the reference table come first, in its order; then the fields that vary; then losses. No torch, no Ray.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.report.labels import format_field_name, format_field_values, is_number, list_varying_fields
from raylm.results.measures import NATS_PER_BYTE


@dataclass(frozen=True)
class Column:
    """Column of a table."""

    name: str
    """Heading."""
    is_numeric: bool = True
    key: str = ""
    """Name in results.csv and in JSON, unique in a table; default: the heading with underscores."""
    is_swept: bool = False
    """True for a field of the trials that varies and is not a column of the reference table."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name.replace(" ", "_"))


KEY_COLUMNS = (
    Column("dataset", is_numeric=False),
    Column("context len", key="context_length"),
    Column("model", is_numeric=False),
    Column("batch size"),
)
"""Columns of the reference table that are fields of the trials, with the field's name as their key."""
LOSS_COLUMNS = (Column("train loss"), Column("val loss"), Column("adj val loss"))
BYTES_COLUMN = Column(NATS_PER_BYTE)
"""Column of tables that rank by it."""
ZERO_SHOT_COLUMN = Column("zero-shot", key="zero_shot_loss")
"""Val loss before fine-tuning."""
TEST_COLUMN, SEEDS_COLUMN = Column("test loss"), Column("n")
BEST_EPOCH_COLUMN, RUN_COLUMN = Column("best epoch"), Column("run", is_numeric=False)
REFERENCE_COLUMNS = (*KEY_COLUMNS, *LOSS_COLUMNS, BEST_EPOCH_COLUMN, RUN_COLUMN)
"""Columns of the reference table."""
KEY_FIELDS = tuple(column.key for column in KEY_COLUMNS)


def list_swept_columns(configs: Iterable[TrialConfig], *exclude: str) -> list[Column]:
    """Return the columns of the fields that vary and are not columns of the reference, in the order of `TrialConfig`.

    Args:
        configs: trials of the table.
        exclude: fields without a column, such as a `seed` over which rows are averaged.
    """
    trials = list(configs)
    names = list_varying_fields(trials, *KEY_FIELDS, *exclude)
    return [Column(format_field_name(name), _is_numeric(trials, name), name, is_swept=True) for name in names]


def find_swept_fields(configs: Iterable[TrialConfig]) -> list[str]:
    """Return the fields that vary and are not columns of the reference, `seed` among them."""
    return list_varying_fields(configs, *KEY_FIELDS)


def list_varying_columns(configs: Iterable[TrialConfig]) -> list[Column]:
    """Return the columns of all fields that vary: those of the reference table in its order, then the others.

    For tables without losses, such as a plan, where a field with one value has no column.
    """
    trials = list(configs)
    varying = list_varying_fields(trials)
    return [*(column for column in KEY_COLUMNS if column.key in varying), *list_swept_columns(trials)]


def format_field_columns(configs: Sequence[TrialConfig], columns: Sequence[Column]) -> list[list[str]]:
    """Return the cells of each trial below columns of fields; different values have different texts."""
    by_column = [format_field_values(column.key, [getattr(c, column.key) for c in configs]) for column in columns]
    return [list(cells) for cells in zip(*by_column, strict=True)] if by_column else [[] for _ in configs]


def format_varying_fields(trials: Mapping[str, TrialConfig]) -> dict[str, dict[str, str]]:
    """Return the texts of the fields that vary for each trial, by its run name."""
    columns = list_varying_columns(trials.values())
    cells = format_field_columns(list(trials.values()), columns)
    names = [column.key for column in columns]
    return {run: dict(zip(names, texts, strict=True)) for run, texts in zip(trials, cells, strict=True)}


def field_column(name: str) -> Column:
    """Return the column of a field by its name; its heading is that of the reference if it has one."""
    return next((column for column in KEY_COLUMNS if column.key == name), Column(format_field_name(name), key=name))


def _is_numeric(configs: Sequence[TrialConfig], name: str) -> bool:
    values: list[Any] = [getattr(config, name) for config in configs]
    return all(value is None or is_number(value) for value in values)
