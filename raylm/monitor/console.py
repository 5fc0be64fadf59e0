"""Console output: notes, errors, tables, and progress of running trials."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from rich.console import Console as RichConsole
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from raylm.errors import escape_control_chars
from raylm.events import TrialListener
from raylm.monitor.fitted_table import render_table
from raylm.monitor.progress_view import LiveView, PlainView, render_state
from raylm.monitor.screen import open_console
from raylm.monitor.state import SweepMonitor, SweepState
from raylm.planning.plan import TrialPlan
from raylm.report.reference import ReferenceTable
from raylm.report.tables.columns import RUN_COLUMN, Column, format_field_columns, list_varying_columns
from raylm.report.tables.sheet import Sheet
from raylm.report.tables.table import build_table
from raylm.results.rows import PENDING, SweepRows
from raylm.units import GIB, format_duration

PLAIN_WIDTH = 250
"""Characters per line if the output is not a terminal: a table in a file is never truncated."""
MIN_COLUMN_WIDTH = 36
"""Minimum width of a column of prose, in characters."""
PLAN_HEADINGS = ("params", "tokens", "steps", "PFLOPs", "micro", "GiB", "disk", "time")


class Console:
    """Output for the user. A quiet console prints results and errors, but no notes and no progress."""

    def __init__(
        self, *, quiet: bool = False, keeps_working: bool = False, rich_console: RichConsole | None = None
    ) -> None:
        """Create the console.

        Args:
            quiet: print results and errors only.
            keeps_working: discard what cannot be written, as to a terminal that is gone, instead of ending the command.
            rich_console: console to write to; None: standard output.
        """
        self.rich_console = rich_console or open_console(keeps_working=keeps_working)
        if not self.rich_console.is_terminal:
            self.rich_console.width = PLAIN_WIDTH
        self.quiet = quiet

    def print_note(self, text: str) -> None:
        """Print a note, unless quiet."""
        if not self.quiet:
            self.rich_console.print(escape(text))

    def print_listing(self, entries: Sequence[tuple[str, str]]) -> None:
        """Print names with their descriptions."""
        table = Table.grid(padding=(0, 2, 0, 0))
        for name, description in entries:
            table.add_row(escape(name), escape(description))
        self.rich_console.print(table, soft_wrap=False)

    def print_finding(self, host: str, check: str, status: str, advice: str) -> None:
        """Print the result of a check, and what to do if it failed.

        Args:
            host: machine that was checked.
            check: what was checked.
            status: result of the check.
            advice: what to do; empty if the check passed.
        """
        line = f"{'!!' if advice else 'ok'}  {host}  {check}: {status}"
        self.rich_console.print(escape(f"{line}\n    {advice}" if advice else line), style="yellow" if advice else None)

    def print_error(self, text: str) -> None:
        """Print an error to standard error, quiet or not."""
        open_console(keeps_working=True, stderr=True).print(escape(f"raylm: {text}"))

    @contextlib.contextmanager
    def show_spinner(self, text: str, *, on_terminal_only: bool = False) -> Iterator[None]:
        """Print a note about a long operation, with a spinner on a terminal while it runs.

        Args:
            text: the note.
            on_terminal_only: leave it out where the output is a file or a pipe.
        """
        if self.quiet:
            yield
        elif self.rich_console.is_terminal:
            with self.rich_console.status(escape(text)):
                yield
        else:
            if not on_terminal_only:
                self.print_note(text)
            yield

    def print_table(self, results: SweepRows, reference: ReferenceTable | None = None) -> None:
        """Print the rows in the columns of the reference table and of fields that vary, the best row in bold.

        With a reference, its values and the differences are columns too.

        On a narrow terminal numbers stay whole (`fitted_table`).
        """
        table = build_table(results, reference)
        self.print_sheet(Sheet(table.columns, table.rows, table.notes, best_rows=tuple(table.is_best)))

    def print_sheet(self, sheet: Sheet) -> None:
        """Print a table with its notes; a best cell that is not named otherwise has a star."""
        columns, notes = list(sheet.columns), list(sheet.notes)
        rows = [
            [f"{cell} *" if (row, column) in sheet.bold else cell for column, cell in enumerate(cells)]
            for row, cells in enumerate(sheet.rows)
        ]
        if sheet.span is not None:
            first, heading = sheet.span
            columns[first:] = [replace(column, name=f"{heading} {column.name}") for column in columns[first:]]
        if columns[-1] != RUN_COLUMN:  # the last column of a fitted table is moved to lines of its own
            columns, rows = [*columns, Column("", is_numeric=False)], [[*cells, ""] for cells in rows]
        self._print_fitted(columns, rows, sheet.best_rows)
        for note in [*notes, *([f"* {sheet.bold_meaning}"] if sheet.bold else [])]:
            self.print_note(note)

    def _print_fitted(
        self, columns: Sequence[Column], rows: Sequence[Sequence[str]], is_bold: Sequence[bool] = ()
    ) -> None:
        for line in render_table(columns, rows, self.rich_console.width, is_bold):
            self.rich_console.print(line)

    def print_plan(self, results: SweepRows, plans: Sequence[TrialPlan | None], notes: Sequence[str]) -> None:
        """Print the fields that vary and the cost of each trial, then notes about all of them."""
        rows = []
        for row, plan in zip(results.rows, plans, strict=True):
            name = row.config.run_name + ("" if row.status == PENDING else f" ({row.status})")
            rows.append([*_format_plan_cells(plan), name])
        if rows:
            trials = [row.config for row in results.rows]
            columns = list_varying_columns(trials)
            fields = format_field_columns(trials, columns)
            rows = [[*texts, *cells] for texts, cells in zip(fields, rows, strict=True)]
            self._print_fitted([*columns, *map(Column, PLAN_HEADINGS), RUN_COLUMN], rows)
        for note in notes:
            self.print_note(note)

    def print_samples(self, headings: Iterable[str], texts: Iterable[str]) -> None:
        """Print texts side by side on a wide terminal, else one after another as each becomes available."""
        names = list(headings)
        if self.rich_console.is_terminal and self.rich_console.width // len(names) >= MIN_COLUMN_WIDTH:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            for name in names:
                table.add_column(escape(name), ratio=1, overflow="fold")
            table.add_row(*map(_escape_lines, texts))
            self.rich_console.print(table, soft_wrap=False)
            return
        for name, text in zip(names, texts, strict=True):
            self.rich_console.print(f"[bold]{escape(name)}[/]\n{_escape_lines(text)}\n")

    @contextlib.contextmanager
    def show_progress(self, monitor: SweepMonitor) -> Iterator[TrialListener]:
        """Yield a listener that shows the progress of trials. Pass every event to the monitor first."""
        if self.rich_console.is_terminal and not self.quiet:
            with LiveView(self.rich_console, monitor) as view:
                yield view
        else:
            yield PlainView(self.print_note, monitor)

    @contextlib.contextmanager
    def show_live_status(self) -> Iterator[Callable[[SweepState], None]]:
        """Yield a function that draws the state of a sweep over the previous one."""
        with Live(console=self.rich_console, transient=True) as live:
            yield lambda state: live.update(render_state(state, self.rich_console.width), refresh=True)

    def print_status(self, state: SweepState, notes: Sequence[str]) -> None:
        """Print the state of a sweep, then notes."""
        self.rich_console.print(render_state(state, self.rich_console.width), soft_wrap=False)
        for note in notes:
            self.print_note(note)


def _escape_lines(text: str) -> str:
    """Return a text of several lines without markup and control characters."""
    return escape("\n".join(map(escape_control_chars, text.splitlines())))


def _format_plan_cells(plan: TrialPlan | None) -> list[str]:
    """Return the cells of a trial below `PLAN_HEADINGS`."""
    if plan is None:
        return ["?"] * len(PLAN_HEADINGS)
    about, micro_batching = "" if plan.is_exact else "~", plan.micro_batching
    return [
        _format_si(plan.shape.num_parameters) if plan.shape else "?",
        about + _format_si(plan.tokens),
        f"{about}{plan.steps:,}",
        "?" if plan.flops is None else f"{plan.flops / 1e15:,.3g}",
        f"{micro_batching.micro_batch_size}{'r' if micro_batching.recompute else ''}" if micro_batching else "?",
        "?" if plan.peak_bytes is None else f"{plan.peak_bytes / GIB:.1f}",
        "?" if plan.checkpoint_bytes is None else f"{plan.checkpoint_bytes / GIB:.2f}",
        "?" if plan.seconds is None else f"~{format_duration(plan.seconds)}",
    ]


def _format_si(number: int) -> str:
    """Return a number with an SI prefix: `950`, `13.4k`, `124M`, `1.56G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
