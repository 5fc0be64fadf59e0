"""Sheet: a table as it is printed, with its emphasis, for terminals, Markdown and LaTeX."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.report.tables.columns import Column


@dataclass(frozen=True)
class Sheet:
    """Columns and cells with what is emphasized."""

    columns: tuple[Column, ...]
    rows: list[list[str]]
    notes: list[str]
    """Remarks, shown below."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """Numbers of the row and the column of the best cells."""
    best_rows: tuple[bool, ...] = ()
    """True for each best row whose run name says so; empty if there are no run names."""
    breaks: frozenset[int] = frozenset()
    """Numbers of the rows that begin another dataset."""
    bold_meaning: str = "best"
    """Meaning of bold cells."""
    span: tuple[int, str] | None = None
    """Number of the first of the columns that share a heading, up to the last, and the heading."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """Headings of the columns."""
        return tuple(column.name for column in self.columns)
