"""Tables for papers: without run names, the best losses in bold."""

from __future__ import annotations

from raylm.report.tables.columns import RUN_COLUMN, Column
from raylm.report.tables.sheet import Sheet
from raylm.report.tables.table import Table
from raylm.results.rows import SweepRows

STATUS_COLUMN = Column("status", is_numeric=False)
LOSS_WORDS = ("loss", "nats_per", "bits_per", "perplexity")
"""Words in the names of columns whose lowest value is the best."""


def is_loss(name: str) -> bool:
    """Return whether the lowest value of a column of results.csv is the best."""
    return any(word in name for word in LOSS_WORDS) and not name.startswith(("reference_", "diff_"))


def build_paper_sheet(table: Table, results: SweepRows) -> Sheet:
    """Return a table for a paper: without run names, the best loss of each dataset in bold.

    The statuses of rows that are not done, which stand after run names elsewhere, are a column.
    """
    kept = [number for number, column in enumerate(table.columns) if column != RUN_COLUMN]
    columns = [table.columns[number] for number in kept]
    rows = [[cells[number] for number in kept] for cells in table.rows]
    statuses = [", ".join(group.unfinished_statuses) for group in table.groups]
    if any(statuses) and STATUS_COLUMN.key not in {column.key for column in columns}:
        columns.append(STATUS_COLUMN)
        rows = [[*cells, status] for cells, status in zip(rows, statuses, strict=True)]
    keys = [column.key for column in columns]
    bold: set[tuple[int, int]] = set()
    for number, (group, is_best) in enumerate(zip(table.groups, table.is_best, strict=True)):
        key = results.measures[group.config.dataset].name.replace(" ", "_")
        if is_best:
            losses = [other for other in keys if is_loss(other)]
            shown = key if key in keys else (losses or keys)[0]
            bold.add((number, keys.index(shown)))
    datasets = [group.config.dataset for group in table.groups]
    breaks = frozenset(number for number in range(1, len(datasets)) if datasets[number] != datasets[number - 1])
    return Sheet(tuple(columns), rows, table.notes, frozenset(bold), breaks=breaks)
