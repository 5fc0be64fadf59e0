"""Running trials as lines of a terminal of any width: what varies, a bar, and numbers that are never cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raylm.monitor.state import RunningTrial
from raylm.report.tables.columns import field_column
from raylm.results.progress import StepMetrics
from raylm.units import format_duration

STEP_HEADINGS = ("step", "tokens/s", "loss", "left")
COLUMN_GAP = 2
"""Characters between two columns."""
MIN_BAR_WIDTH, MAX_BAR_WIDTH = 6, 30
"""Width of a bar, in characters."""
MIN_NAME_WIDTH = 24
"""Minimum length of a shortened run name, in characters."""
LINES_PER_TRIAL = 3
"""Lines of a trial without room for its fields beside its numbers, one of them for a long list of fields."""
SUFFIX_CHARS = 5
"""Characters at the end of a run name, a part of its id, that shortening keeps."""


@dataclass(frozen=True)
class _Columns:
    """Cells beside the bars."""

    fields: list[tuple[str, ...]]
    """Column of each field that varies, its heading first."""
    steps: list[tuple[str, ...]]
    """Columns of the latest step, the heading first."""

    def free_width(self, width: int) -> int:
        """Return the width that is left for names and bars."""
        columns = [*map(_fold, self.fields), *self.steps]
        return width - sum(COLUMN_GAP + max(_text_width(text) for text in column) for column in columns)


def render_trials(running: Sequence[RunningTrial], width: int, max_lines: int) -> tuple[RenderableType, int]:
    """Return a table of running trials, and the number of those that it lists: as many as its lines allow, at least 1.

    Fields that vary are columns. Where there is no room beside them, first the run name is shortened, then left out;
    where there is none for the fields, they stand with the name on a line of their own.
    """
    running = running[: max(max_lines, 1)]
    names = list(dict.fromkeys(name for trial in running for name in trial.fields))
    headings = [field_column(name).name for name in names]
    fields = [
        (heading, *(trial.fields.get(name, "") for trial in running))
        for heading, name in zip(headings, names, strict=True)
    ]
    rows = [_format_step_cells(trial.step) for trial in running]
    columns = _Columns(fields, list(zip(STEP_HEADINGS, *rows, strict=True)))
    free = columns.free_width(width)
    longest = max(len(trial.run_name) for trial in running)
    if free >= min(longest, MIN_NAME_WIDTH) + COLUMN_GAP + MIN_BAR_WIDTH:
        bar_width = min(max(free - COLUMN_GAP - longest, MIN_BAR_WIDTH), MAX_BAR_WIDTH)
        table = _render_table(running, columns, bar_width, name_width=free - COLUMN_GAP - bar_width)
        return table, len(running)
    if fields and free >= MIN_BAR_WIDTH:
        return _render_table(running, columns, min(free, MAX_BAR_WIDTH), name_width=0), len(running)
    listed = running[: max(max_lines // LINES_PER_TRIAL, 1)]
    parts = (part for number, trial in enumerate(listed) for part in _render_lines(trial, columns, number, width))
    return Group(*parts), len(listed)


def _render_table(running: Sequence[RunningTrial], columns: _Columns, bar_width: int, name_width: int) -> Table:
    """Return a line for each trial, without run names if their width is 0."""
    table = Table(box=None, pad_edge=False, padding=(0, COLUMN_GAP, 0, 0), header_style="dim")
    folded = [_fold(column) for column in columns.fields]
    height = max([1, *(column[0].count("\n") + 1 for column in folded)])

    def heading(text: str) -> str:
        return escape("\n" * (height - 1 - text.count("\n")) + text)

    for column in folded:
        table.add_column(heading(column[0]), no_wrap=True)
    if name_width:
        table.add_column(heading("run"), no_wrap=True)
    table.add_column("", width=bar_width)
    for name in STEP_HEADINGS:
        table.add_column(heading(name), justify="right", no_wrap=True)
    for number, trial in enumerate(running, start=1):
        names = [escape(shorten_name(trial.run_name, name_width))] if name_width else []
        cells = [column[number] for column in columns.steps]
        fields = [escape(column[number]) for column in folded]
        table.add_row(*fields, *names, _build_bar(trial, bar_width), *cells)
    return table


def _render_lines(trial: RunningTrial, columns: _Columns, number: int, width: int) -> list[RenderableType]:
    """Return a trial as two lines: its varying fields or its name, then a bar if there is room, and its numbers."""
    fields = ", ".join(f"{field_column(name).name} {value}" for name, value in trial.fields.items())
    texts = [
        [f"{text} tokens/s" if heading == "tokens/s" and text else text for text in column]
        for heading, *column in columns.steps
    ]
    widths = [max(map(cell_len, column)) for column in texts]
    cells = [column[number] for column in texts]
    free = width - sum(COLUMN_GAP + text_width for text_width in widths) - COLUMN_GAP
    name = Text(fields or shorten_name(trial.run_name, width))
    if free < MIN_BAR_WIDTH:
        return [name, Text("  " + "  ".join(filter(None, cells)))]
    grid = Table.grid(padding=(0, COLUMN_GAP, 0, 0))
    for column_width in (0, min(free, MAX_BAR_WIDTH), *widths):
        grid.add_column(width=column_width, justify="right", no_wrap=True)
    grid.add_row("", _build_bar(trial, min(free, MAX_BAR_WIDTH)), *cells)
    return [name, grid]


def _build_bar(trial: RunningTrial, width: int) -> ProgressBar:
    step, total = (trial.step.step, trial.step.total_steps) if trial.step else (0, 1)
    return ProgressBar(total=total, completed=step, width=width)


def _fold(column: tuple[str, ...]) -> tuple[str, ...]:
    """Return a column with its heading on two lines if it has two words."""
    return column[0].replace(" ", "\n", 1), *column[1:]


def _text_width(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def _format_step_cells(step: StepMetrics | None) -> tuple[str, ...]:
    """Return the cells of a running trial below `STEP_HEADINGS`."""
    if step is None:
        return "starting", "", "", ""
    steps, rate = f"{step.step:,}/{step.total_steps:,}", f"{step.tokens_per_second:,.0f}"
    return steps, rate, f"{step.loss:.3f}", format_duration(step.seconds_left)


def shorten_name(name: str, max_chars: int) -> str:
    """Return a run name, without its middle if it is too long; its beginning and the end of its id stay."""
    return name if len(name) <= max_chars else f"{name[: max_chars - SUFFIX_CHARS - 1]}…{name[-SUFFIX_CHARS:]}"
