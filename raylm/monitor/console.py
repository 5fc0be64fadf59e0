"""What a person sees: notes, live progress of all trials, the table. Bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console as RichConsole
from rich.live import Live as Redrawn
from rich.markup import escape
from rich.table import Table

from raylm.errors import escape_control_chars
from raylm.events import TrialListener
from raylm.monitor.progress_view import LiveView, PlainView, render_state
from raylm.monitor.state import SweepMonitor, SweepState
from raylm.planning.plan import TrialPlan
from raylm.report.reference import ReferenceTable
from raylm.report.table import build_table
from raylm.results.rows import PENDING, Results
from raylm.units import GIB, format_duration

PLAIN_WIDTH = 250
"""Characters of a line where there is no terminal: a table in a file is never cut."""

MIN_COLUMN_WIDTH = 36
"""Characters of a line in which a text can still be read beside others."""


class Console:
    """Where everything for the user goes. Nothing but the table is said when quiet."""

    def __init__(self, *, quiet: bool = False, rich_console: RichConsole | None = None) -> None:
        self.rich_console = rich_console or RichConsole(highlight=False, soft_wrap=True)
        if not self.rich_console.is_terminal:
            self.rich_console.width = PLAIN_WIDTH
        self.quiet = quiet

    def print_note(self, text: str) -> None:
        """A note."""
        if not self.quiet:
            self.rich_console.print(escape(text))

    def print_listing(self, entries: Sequence[tuple[str, str]]) -> None:
        """Names, with what there is to say of each."""
        view = Table.grid(padding=(0, 2, 0, 0))
        for name, about in entries:
            view.add_row(escape(name), escape(about))
        self.rich_console.print(view, soft_wrap=False)

    def print_finding(self, host: str, check: str, status: str, advice: str) -> None:
        """One thing that was looked at, and what to do where it does not serve."""
        line = f"{'!!' if advice else 'ok'}  {host}  {check}: {status}"
        self.rich_console.print(escape(f"{line}\n    {advice}" if advice else line), style="yellow" if advice else None)

    def print_error(self, text: str) -> None:
        """What went wrong, on standard error, quiet or not."""
        RichConsole(stderr=True, highlight=False, soft_wrap=True).print(escape(f"raylm: {text}"))

    @contextlib.contextmanager
    def show_spinner(self, text: str) -> Iterator[None]:
        """A note on something that takes a while, with a spinner on a terminal."""
        if self.quiet:
            yield
        elif self.rich_console.is_terminal:
            with self.rich_console.status(escape(text)):
                yield
        else:
            self.print_note(text)
            yield

    def print_table(self, results: Results, reference: ReferenceTable | None = None) -> None:
        """The rows, in the reference table's columns; with a reference, its values and the differences beside."""
        made = build_table(results, reference)
        view = Table(box=None, pad_edge=False, header_style="bold")
        for heading in made.column_names:
            right = heading not in ("dataset", "model", "run")
            last = heading == "run"  # gives way on a narrow terminal, so that the numbers stay
            view.add_column(heading, justify="right" if right else "left", no_wrap=not last, overflow="fold")
        for cells in made.rows:
            view.add_row(*map(escape, cells))
        self.rich_console.print(view, soft_wrap=False)
        for note in made.notes:
            self.print_note(note)

    def print_plan(self, results: Results, plans: Sequence[TrialPlan | None], notes: Sequence[str]) -> None:
        """What each trial takes, and below it what there is to say of all of them."""
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for heading in ("params", "tokens", "steps", "PFLOPs", "micro", "GiB", "disk", "time"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("run", overflow="fold")
        for row, one in zip(results.rows, plans, strict=True):
            name = row.config.run_name + ("" if row.status == PENDING else f" ({row.status})")
            table.add_row(*_format_plan_cells(one), escape(name), style="dim" if row.is_finished else None)
        if results.rows:
            self.rich_console.print(table, soft_wrap=False)
        for text in notes:
            self.print_note(text)

    def print_samples(self, headings: Iterable[str], texts: Iterable[str]) -> None:
        """Texts side by side on a terminal that is wide enough, else one after another, each as it comes."""
        names = list(headings)
        if self.rich_console.is_terminal and self.rich_console.width // len(names) >= MIN_COLUMN_WIDTH:
            view = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            for name in names:
                view.add_column(escape(name), ratio=1, overflow="fold")
            view.add_row(*map(_escape_lines, texts))
            self.rich_console.print(view, soft_wrap=False)
            return
        for name, text in zip(names, texts, strict=True):
            self.rich_console.print(f"[bold]{escape(name)}[/]\n{_escape_lines(text)}\n")

    @contextlib.contextmanager
    def show_progress(self, monitor: SweepMonitor) -> Iterator[TrialListener]:
        """Progress of the trials that are watched, which is told of everything before this is."""
        if self.rich_console.is_terminal and not self.quiet:
            with LiveView(self.rich_console, monitor) as bars:
                yield bars
        else:
            yield PlainView(self.print_note, monitor)

    @contextlib.contextmanager
    def show_live_status(self) -> Iterator[Callable[[SweepState], None]]:
        """Shows how a sweep stands, time and again in place."""
        with Redrawn(console=self.rich_console, transient=True) as place:
            yield lambda state: place.update(render_state(state, self.rich_console.width), refresh=True)

    def print_status(self, state: SweepState, notes: Sequence[str]) -> None:
        """How a sweep stands, and what there is to say of it."""
        self.rich_console.print(render_state(state, self.rich_console.width), soft_wrap=False)
        for note in notes:
            self.print_note(note)


def _escape_lines(text: str) -> str:
    """A text of several lines, without what a terminal would act on."""
    return escape("\n".join(map(escape_control_chars, text.splitlines())))


def _format_plan_cells(plan: TrialPlan | None) -> list[str]:
    """Parameters, tokens, steps, PFLOPs, windows at a time, GiB of the device, GiB of disk, time."""
    if plan is None:
        return ["?"] * 8
    about, fit = "" if plan.is_exact else "~", plan.micro_batching
    return [
        _format_si(plan.shape.num_parameters) if plan.shape else "?",
        about + _format_si(plan.tokens),
        f"{about}{plan.steps:,}",
        "?" if plan.flops is None else f"{plan.flops / 1e15:,.3g}",
        "?" if fit is None else f"{fit.micro_batch_size}{'r' if fit.recompute else ''}",
        "?" if plan.peak_bytes is None else f"{plan.peak_bytes / GIB:.1f}",
        "?" if plan.checkpoint_bytes is None else f"{plan.checkpoint_bytes / GIB:.2f}",
        "?" if plan.seconds is None else f"~{format_duration(plan.seconds)}",
    ]


def _format_si(number: int) -> str:
    """`950`, `13.4k`, `124M`, `1.56G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
