"""Rows of the page's table: cells with the values that they sort by, and each trial's fields and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote

from raylm.report.labels import format_field_name, format_field_value
from raylm.report.select.rows import Record, summarize_values
from raylm.report.tables.columns import RUN_COLUMN, Column
from raylm.report.tables.groups import SeedGroup
from raylm.report.tables.table import Table
from raylm.results.logs import log_file_name
from raylm.results.rows import Row


@dataclass(frozen=True)
class Cell:
    """Cell of the table."""

    text: str
    value: str
    """Value to sort by and to download: a number in full precision, run names, or the text; empty if there is none."""


@dataclass(frozen=True)
class TrialDetails:
    """Trial of a row of the table."""

    id: str
    """Id, by which the figures name it."""
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
    def trial_ids(self) -> str:
        """Ids of its trials."""
        return " ".join(trial.id for trial in self.trials)


def build_page_rows(table: Table, records: Iterable[Record]) -> list[PageRow]:
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
    columns: Sequence[Column], texts: Sequence[str], group: SeedGroup, records: Mapping[str, Record]
) -> list[Cell]:
    run_names = " ".join(row.config.run_name for row in group.rows)
    cells = []
    for column, text in zip(columns, texts, strict=True):
        if column.is_numeric:
            value = _format_value(summarize_values(group, records, column.key), text)
        else:
            value = run_names if column.key == RUN_COLUMN.key else text
        cells.append(Cell(text, value))
    return cells


def _format_value(value: float | str | None, text: str) -> str:
    """Return a number in full precision: the text of its cell if that has it, so that the page needs it once only."""
    if value is None:
        return ""
    try:
        return text if float(text) == value else str(value)
    except ValueError:  # a number with its interval
        return str(value)


def _describe(row: Row) -> TrialDetails:
    changed = row.config.changed_fields.items()
    texts = (f"{format_field_name(name)} {format_field_value(value)}" for name, value in changed)
    best = row.best_checkpoint
    log, checkpoint = quote(find_log(row)), quote(f"{best.folder}/") if best else ""
    return TrialDetails(row.config.id, row.config.run_name, ", ".join(texts), log, checkpoint)


def find_log(row: Row) -> str:
    """Return the name of the log of a trial's latest launch; empty before its first checkpoint."""
    latest = row.latest_checkpoint
    return str(PurePosixPath(latest.folder).parent / log_file_name(rank=0)) if latest else ""
