"""Rows of the page's table: cells with the values that they sort by, and each trial's fields and files."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from raylm.config.trial import TrialConfig
from raylm.report.labels import format_field_name, format_field_value
from raylm.report.tables.columns import RUN_COLUMN, Column
from raylm.report.tables.groups import SeedGroup
from raylm.report.tables.table import Table
from raylm.results.rows import Row

LOG_FILE = "log.txt"


@dataclass(frozen=True)
class Cell:
    """Cell of the table."""

    text: str
    value: str
    """Value to sort by: a number in full precision, or the text; empty if there is none."""


@dataclass(frozen=True)
class TrialDetails:
    """Trial of a row of the table."""

    run_name: str
    fields: str
    """Fields that are not at their defaults."""
    log: str
    """Location of its log relative to the page; empty if it has none."""
    checkpoint: str
    """Folder of its best checkpoint relative to the page; empty if it has none."""


@dataclass(frozen=True)
class PageRow:
    """Row of the table on the page."""

    cells: list[Cell]
    trials: list[TrialDetails]
    is_best: bool

    @property
    def runs(self) -> str:
        """Run names of its trials, as the figures name them."""
        return " ".join(trial.run_name for trial in self.trials)


def build_page_rows(table: Table, records: Iterable[Mapping[str, Any]]) -> list[PageRow]:
    """Return the rows of a table for the page.

    Args:
        table: table of the page.
        records: values of each trial by column of results.csv.
    """
    by_id = {record["trial_id"]: record for record in records}
    return [
        PageRow(_build_cells(table.columns, cells, group, by_id), [_describe(row) for row in group.rows], is_best)
        for group, cells, is_best in zip(table.groups, table.rows, table.is_best, strict=True)
    ]


def find_detail_column(columns: tuple[Column, ...]) -> int:
    """Return the index of the column whose cells open the details of their trials: of run names, or the last one."""
    keys = [column.key for column in columns]
    return keys.index(RUN_COLUMN.key) if RUN_COLUMN.key in keys else len(keys) - 1


def _build_cells(
    columns: Sequence[Column], texts: Sequence[str], group: SeedGroup, records: Mapping[str, Mapping[str, Any]]
) -> list[Cell]:
    trials = [records[row.config.id] for row in group.rows]
    return [
        Cell(text, _sort_value([trial.get(column.key) for trial in trials]) if column.is_numeric else text)
        for column, text in zip(columns, texts, strict=True)
    ]


def _sort_value(values: list[Any]) -> str:
    """Return the mean of the numbers among the values."""
    numbers = [value for value in values if isinstance(value, int | float)]
    return repr(statistics.fmean(numbers)) if numbers else ""


def _describe(row: Row) -> TrialDetails:
    defaults = TrialConfig.from_record({})
    changed = {
        field.name: getattr(row.config, field.name)
        for field in fields(row.config)
        if getattr(row.config, field.name) != getattr(defaults, field.name)
    }
    texts = (f"{format_field_name(name)} {format_field_value(value)}" for name, value in changed.items())
    best = row.best_checkpoint
    log, checkpoint = quote(find_log(row)), quote(f"{best.folder}/") if best else ""
    return TrialDetails(row.config.run_name, ", ".join(texts), log, checkpoint)


def find_log(row: Row) -> str:
    """Return the name of the log of a trial's latest launch; empty before its first checkpoint."""
    latest = row.latest_checkpoint
    return str(PurePosixPath(latest.folder).parent / LOG_FILE) if latest else ""
