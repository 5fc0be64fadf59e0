"""Tables that fit the width of a terminal without cutting a number.

What gives way, in this order: headings are folded, run names move to lines below, columns that never vary are given
once above the table, names are shortened with an ellipsis; at last each row becomes a list of names and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rich.cells import cell_len
from rich.markup import escape

from raylm.report.tables.columns import Column

GAP = 2
"""Characters between two columns."""
MIN_NAME_WIDTH = 8
"""Width that names are shortened to, at least."""
ELLIPSIS = "…"


@dataclass(frozen=True)
class _Layout:
    """Columns and rows of a table, whose last column holds the run names."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    headings: Sequence[Sequence[str]]
    """Lines of each column's heading."""
    runs: Sequence[str] | None = None
    """Run names that are written on lines below; None: they are a column."""
    constants: str = ""
    """Columns that never vary, with their values."""
    is_bold: Sequence[bool] = ()
    """True for rows in bold; empty: none is."""

    @cached_property
    def widths(self) -> list[int]:
        """Width of each column, in cells of a terminal."""
        cells = zip(*self.rows, strict=True) if self.rows else ([] for _ in self.columns)
        return [max(map(cell_len, [*texts, *column])) for texts, column in zip(self.headings, cells, strict=True)]

    def fits(self, width: int) -> bool:
        """Return whether no line of numbers is longer than a width."""
        return sum(self.widths) + GAP * (len(self.columns) - 1) <= width

    def render(self) -> Iterator[str]:
        """Yield the lines of the table in rich's markup."""
        if self.constants:
            yield escape(self.constants)
        height = max(map(len, self.headings), default=0)
        for line in range(height):
            texts = [("",) * (height - len(heading)) + tuple(heading) for heading in self.headings]
            yield f"[bold]{escape(self._join([text[line] for text in texts]))}[/]"
        for number, cells in enumerate(self.rows):
            lines = [self._join(cells), *([f"  {self.runs[number]}"] if self.runs and self.runs[number] else [])]
            is_bold = number < len(self.is_bold) and self.is_bold[number]
            yield from (f"[bold]{escape(line)}[/]" if is_bold else escape(line) for line in lines)

    def _join(self, cells: Sequence[str]) -> str:
        padded = []
        for cell, width, column in zip(cells, self.widths, self.columns, strict=True):
            space = " " * (width - cell_len(cell))
            padded.append(space + cell if column.is_numeric else cell + space)
        return (" " * GAP).join(padded).rstrip()

    def without(self, numbers: Sequence[int]) -> _Layout:
        """Return the layout without the columns of these numbers."""
        kept = [number for number in range(len(self.columns)) if number not in numbers]
        return replace(
            self,
            columns=[self.columns[number] for number in kept],
            headings=[self.headings[number] for number in kept],
            rows=[[cells[number] for number in kept] for cells in self.rows],
        )


def render_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int, is_bold: Sequence[bool] = ()
) -> Iterator[str]:
    """Yield the lines of a table in rich's markup; no line of numbers is longer than the width.

    Args:
        columns: columns, the last one of run names.
        rows: cells of each row.
        width: cells of a line.
        is_bold: True for rows in bold; empty: none is.
    """
    layout = _Layout(columns, rows, [[column.name] for column in columns], is_bold=is_bold)
    for candidate in (layout, *_narrower(layout, width)):
        if candidate.fits(width):
            yield from candidate.render()
            return
    yield from _render_lists(columns, rows, width)


def _narrower(layout: _Layout, width: int) -> Iterator[_Layout]:
    """Yield layouts that take less and less width, the last with names as short as a width needs."""
    layout = replace(layout, headings=[column.name.rsplit(" ", 1) for column in layout.columns])
    yield layout
    layout = replace(layout.without([len(layout.columns) - 1]), runs=[cells[-1] for cells in layout.rows])
    yield layout
    names = [column.name for column in layout.columns]
    constant = [
        number
        for number, name in enumerate(names)
        if names.count(name) == 1 and len({cells[number] for cells in layout.rows}) == 1
    ]
    if 0 < len(constant) < len(layout.columns) and len(layout.rows) > 1:
        values = [f"{layout.columns[n].name} {layout.rows[0][n]}" for n in constant]
        layout = replace(layout.without(constant), constants=f"in all rows: {', '.join(values)}")
        yield layout
    yield _shorten_names(layout, _find_name_width(layout, width))


def _find_name_width(layout: _Layout, width: int) -> int:
    """Return the largest width of columns of names, at least `MIN_NAME_WIDTH`, at which a layout fits."""
    columns = list(zip(layout.columns, layout.headings, layout.widths, strict=True))
    numbers = sum(column_width for column, _, column_width in columns if column.is_numeric)
    names = [
        (max(map(cell_len, heading)), column_width)
        for column, heading, column_width in columns
        if not column.is_numeric
    ]
    free = width - numbers - GAP * (len(columns) - 1)
    for limit in range(max(layout.widths, default=0) - 1, MIN_NAME_WIDTH, -1):
        if sum(max(heading, min(column_width, limit)) for heading, column_width in names) <= free:
            return limit
    return MIN_NAME_WIDTH


def _shorten_names(layout: _Layout, limit: int) -> _Layout:
    """Return a layout whose columns of names have at most this width."""
    names = [not column.is_numeric for column in layout.columns]
    rows = [
        [_shorten(cell, limit) if is_name else cell for cell, is_name in zip(cells, names, strict=True)]
        for cells in layout.rows
    ]
    return replace(layout, rows=rows)


def _shorten(text: str, limit: int) -> str:
    """Return a text of at most `limit` cells, with an ellipsis in its middle if it is longer."""
    if cell_len(text) <= limit:
        return text
    head, tail = text[: (limit - 1 + 1) // 2], text[len(text) - (limit - 1) // 2 :]
    return head + ELLIPSIS + tail


def _render_lists(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield each row as its run name, and below it a line for each column, or two if it is too long for one."""
    for cells in rows:
        yield f"[bold]{escape(cells[-1])}[/]"
        for column, cell in zip(columns[:-1], cells[:-1], strict=True):
            line = f" {column.name}: {cell}"
            yield from map(escape, [line] if cell_len(line) <= width else [f" {column.name}:", f"  {cell}"])
