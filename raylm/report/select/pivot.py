"""Two-way tables: one field down, another across, a number in each cell."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raylm.errors import UserError, safe_repr
from raylm.report.figures.grouping import sort_values
from raylm.report.labels import format_field_name, format_field_values
from raylm.report.select.columns import format_values
from raylm.report.select.paper import is_loss
from raylm.report.select.rows import Record, collect_values, list_names, resolve_column
from raylm.report.tables.columns import LOSS_COLUMNS, Column
from raylm.report.tables.groups import MISSING, SeedGroup, format_mean_interval, group_by_seed
from raylm.report.tables.sheet import Sheet
from raylm.results.measures import VAL_LOSS
from raylm.results.rows import DONE, SweepRows


@dataclass(frozen=True)
class Cell:
    """Cell of a two-way table: a line of the table, the best of those with its values of both fields."""

    dataset: str
    row: Any
    column: Any
    values: list[Any]
    """Value of each seed."""
    runs: list[str]
    num_lines: int
    """Number of lines that it is the best of."""

    @property
    def mean(self) -> float:
        """Mean of the seeds; infinite if the values are not numbers."""
        numbers = [value for value in self.values if isinstance(value, int | float)]
        return statistics.fmean(numbers) if numbers and len(numbers) == len(self.values) else math.inf


@dataclass(frozen=True)
class Pivot:
    """Two-way table."""

    row: str
    column: str
    value: str
    """Names of columns of results.csv."""
    cells: list[Cell] = field(default_factory=list)

    def find_best(self) -> list[Cell]:
        """Return the cell with the lowest loss of each dataset; none if the value is not a loss."""
        if not is_loss(self.value):
            return []
        datasets = dict.fromkeys(cell.dataset for cell in self.cells)
        best = [min((c for c in self.cells if c.dataset == dataset), key=lambda c: c.mean) for dataset in datasets]
        return [cell for cell in best if math.isfinite(cell.mean)]

    def as_records(self) -> list[dict[str, Any]]:
        """Return a record for each cell, in full precision."""
        return [
            {
                "dataset": cell.dataset,
                self.row: cell.row,
                self.column: cell.column,
                self.value: cell.mean if math.isfinite(cell.mean) else next(iter(cell.values), None),
                "n": len(cell.values),
                "runs": " ".join(cell.runs),
            }
            for cell in self.cells
        ]


def build_pivot(results: SweepRows, text: str, records: Mapping[str, Record]) -> Pivot:
    """Return the two-way table of `ROW,COLUMN` or `ROW,COLUMN,VALUE`, from the done rows.

    Without VALUE it is the loss that the rows are ranked by. Of several lines of the table with the same values of
    both fields, the one with the lowest ranked loss is shown.

    Args:
        results: rows of any status.
        text: names of columns of results.csv.
        records: values of each row by trial id.

    Raises:
        UserError: if the text has another form, a column does not exist, or no row is done.
    """
    names = [name for name in map(str.strip, text.split(",")) if name]
    if len(names) not in (2, 3):
        raise UserError(f"--pivot: got {safe_repr(text)}; expected ROW,COLUMN or ROW,COLUMN,VALUE")
    keys = [resolve_column(name, list_names(records.values()), "--pivot") for name in names]
    value = keys[2] if len(keys) == 3 else _choose_value(results)
    done = [[row for row in group.rows if row.status == DONE] for group in group_by_seed(results)]
    groups = [SeedGroup(rows) for rows in done if rows]
    if not groups:
        raise UserError(f"--pivot: {results.storage.uri} has no done row yet")
    cells: dict[tuple[str, Any, Any], list[SeedGroup]] = {}
    for group in groups:
        record = records[group.config.id]
        cells.setdefault((group.config.dataset, record[keys[0]], record[keys[1]]), []).append(group)
    return Pivot(keys[0], keys[1], value, [_build_cell(k, g, value, records, results) for k, g in cells.items()])


def _choose_value(results: SweepRows) -> str:
    """Return the loss that rows are ranked by; val loss if that differs between datasets."""
    names = {measure.name for measure in results.measures.values()}
    return (names.pop() if len(names) == 1 else VAL_LOSS).replace(" ", "_")


def _build_cell(
    key: tuple[str, Any, Any],
    groups: Sequence[SeedGroup],
    value: str,
    records: Mapping[str, Record],
    results: SweepRows,
) -> Cell:
    def mean_loss(group: SeedGroup) -> float:
        losses = [loss for row in group.rows if (loss := results.ranked_loss(row)) is not None]
        return statistics.fmean(losses) if losses else math.inf

    best = min(groups, key=mean_loss)
    runs = [row.config.run_name for row in best.rows]
    return Cell(*key, collect_values(best, records, value), runs, len(groups))


def build_pivot_sheet(pivot: Pivot) -> Sheet:
    """Return a two-way table as it is printed, with a block of rows for each dataset."""
    datasets = list(dict.fromkeys(cell.dataset for cell in pivot.cells))
    has_dataset = len(datasets) > 1 and "dataset" not in (pivot.row, pivot.column)
    across = sort_values(pivot.column, (cell.column for cell in pivot.cells))
    headings = format_field_values(pivot.column, across)
    first = 2 if has_dataset else 1
    row_column = Column(format_field_name(pivot.row), is_numeric=False, key=pivot.row)
    columns = [Column("dataset", is_numeric=False)] if has_dataset else []
    columns += [row_column, *(Column(text, key=f"{pivot.column}={text}") for text in headings)]
    best, bold, breaks = pivot.find_best(), set(), set()
    rows: list[list[str]] = []
    for block in [[dataset] for dataset in datasets] if has_dataset else [datasets]:
        own = [cell for cell in pivot.cells if cell.dataset in block]
        down = sort_values(pivot.row, (cell.row for cell in own))
        breaks |= {len(rows)} if rows else set()
        for value, text in zip(down, format_field_values(pivot.row, down), strict=True):
            line = {cell.column: cell for cell in own if cell.row == value}
            bold |= {(len(rows), first + across.index(cell.column)) for cell in line.values() if cell in best}
            cells = [_format_cell(line[other], pivot.value) if other in line else MISSING for other in across]
            rows.append([*(block if has_dataset else []), text, *cells])
    notes = [f"cells: {format_field_name(pivot.value)}"]
    if (most := max(cell.num_lines for cell in pivot.cells)) > 1:
        notes.append(f"each cell is the best of up to {most} configurations that differ in other fields")
    if any(len(cell.values) > 1 for cell in pivot.cells):
        notes.append("±: half the width of the 95 % interval over seeds")
    span = (first, format_field_name(pivot.column))
    return Sheet(tuple(columns), rows, notes, frozenset(bold), breaks=frozenset(breaks), span=span)


def _format_cell(cell: Cell, value: str) -> str:
    """Return a cell, losses of the table with two digits as there."""
    if value in {column.key for column in LOSS_COLUMNS} and math.isfinite(cell.mean):
        return format_mean_interval(cell.values)
    return format_values(cell.values)
