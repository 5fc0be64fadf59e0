"""Rows as a table of text cells: in the reference's order, seeds averaged, with the reference's values. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.report.notes import collect_notes
from raylm.report.reference import ReferenceTable
from raylm.report.tables.cells import Layout, list_cells
from raylm.report.tables.columns import Column
from raylm.report.tables.groups import SeedGroup
from raylm.results.rows import SweepRows


@dataclass(frozen=True)
class Table:
    """Table of text cells, independent of its format."""

    columns: tuple[Column, ...]
    rows: list[list[str]]
    notes: list[str]
    """Remarks on rows, shown below the table."""
    groups: list[SeedGroup]
    """Trials of each row."""
    is_best: list[bool]
    """True for each row with the best trial of a dataset that has several rows."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)


def build_table(results: SweepRows, reference: ReferenceTable | None = None) -> Table:
    """Return the table of a sweep: columns of the reference, fields that vary before the losses, best rows marked.

    Args:
        results: rows of any status.
        reference: values to compare with; its columns are added if it has any of the rows.
    """
    layout = Layout.of(results, reference)
    cells = list_cells(layout)
    compared = [row for group, reference_row in layout.lines if reference_row for row in group.rows]
    notes = _collect_notes(layout, reference if layout.has_reference else None)
    notes += collect_notes(results, compared)
    return Table(
        columns=tuple(column for column, _ in cells),
        rows=[[format_cell(*line) for _, format_cell in cells] for line in layout.lines],
        notes=notes,
        groups=[group for group, _ in layout.lines],
        is_best=[group.config.id in layout.best_ids for group, _ in layout.lines],
    )


def _collect_notes(layout: Layout, reference: ReferenceTable | None) -> list[str]:
    """Return the reasons of rows, the remarks of the reference and its suspicious rows."""
    rows = [row for group, _ in layout.lines for row in group.rows]
    notes = [f"{row.config.run_name} {row.status}: {row.reason}" for row in rows if row.reason]
    if reference is not None:
        compared = [row for _, row in layout.lines if row is not None]
        notes += [f"reference, {row.label}: {row.note}" for row in compared if row.note]
        notes += [
            f"reference, {row.label}: same three losses as {first.label}, probably a copying error in the reference"
            for first, row in reference.find_duplicates()
            if row in compared
        ]
    return notes
