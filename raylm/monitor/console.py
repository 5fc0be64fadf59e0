"""What a person sees: notes, live progress of all trials, the table. Bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console
from rich.live import Live as Redrawn
from rich.markup import escape
from rich.table import Table

from raylm.errors import duration, printable
from raylm.events import Live
from raylm.monitor.progress_view import Bars, Lines, view
from raylm.monitor.state import State, Watch
from raylm.planning.plan import TrialPlan
from raylm.report.reference import Reference
from raylm.report.table import build
from raylm.results.rows import MISSING, Results

PLAIN_WIDTH = 250
"""Characters of a line where there is no terminal: a table in a file is never cut."""

COLUMN_WIDTH = 36
"""Characters of a line in which a text can still be read beside others."""


class Screen:
    """Where everything for the user goes. Nothing but the table is said when quiet."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH
        self.quiet = quiet

    def say(self, text: str) -> None:
        """A note."""
        if not self.quiet:
            self.console.print(escape(text))

    def listing(self, lines: Sequence[tuple[str, str]]) -> None:
        """Names, with what there is to say of each."""
        view = Table.grid(padding=(0, 2, 0, 0))
        for name, about in lines:
            view.add_row(escape(name), escape(about))
        self.console.print(view, soft_wrap=False)

    def finding(self, where: str, what: str, found: str, advice: str) -> None:
        """One thing that was looked at, and what to do where it does not serve."""
        line = f"{'!!' if advice else 'ok'}  {where}  {what}: {found}"
        self.console.print(escape(f"{line}\n    {advice}" if advice else line), style="yellow" if advice else None)

    def error(self, text: str) -> None:
        """What went wrong, on standard error, quiet or not."""
        Console(stderr=True, highlight=False, soft_wrap=True).print(escape(f"raylm: {text}"))

    @contextlib.contextmanager
    def working(self, text: str) -> Iterator[None]:
        """A note on something that takes a while, with a spinner on a terminal."""
        if self.quiet:
            yield
        elif self.console.is_terminal:
            with self.console.status(escape(text)):
                yield
        else:
            self.say(text)
            yield

    def table(self, results: Results, reference: Reference | None = None) -> None:
        """The rows, in the reference table's columns; with a reference, its values and the differences beside."""
        made = build(results, reference)
        view = Table(box=None, pad_edge=False, header_style="bold")
        for heading in made.headings:
            right = heading not in ("dataset", "model", "run")
            last = heading == "run"  # gives way on a narrow terminal, so that the numbers stay
            view.add_column(heading, justify="right" if right else "left", no_wrap=not last, overflow="fold")
        for cells in made.lines:
            view.add_row(*map(escape, cells))
        self.console.print(view, soft_wrap=False)
        for note in made.notes:
            self.say(note)

    def plan(self, results: Results, plans: Sequence[TrialPlan | None], after: Sequence[str]) -> None:
        """What each trial takes, and below it what there is to say of all of them."""
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for heading in ("params", "tokens", "steps", "PFLOPs", "micro", "GiB", "disk", "time"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("run", overflow="fold")
        for row, one in zip(results.rows, plans, strict=True):
            name = row.config.run_name + ("" if row.status == MISSING else f" ({row.status})")
            table.add_row(*_plan_cells(one), escape(name), style="dim" if row.ended else None)
        if results.rows:
            self.console.print(table, soft_wrap=False)
        for text in after:
            self.say(text)

    def samples(self, headings: Iterable[str], texts: Iterable[str]) -> None:
        """Texts side by side on a terminal that is wide enough, else one after another, each as it comes."""
        names = list(headings)
        if self.console.is_terminal and self.console.width // len(names) >= COLUMN_WIDTH:
            view = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            for name in names:
                view.add_column(escape(name), ratio=1, overflow="fold")
            view.add_row(*map(_shown, texts))
            self.console.print(view, soft_wrap=False)
            return
        for name, text in zip(names, texts, strict=True):
            self.console.print(f"[bold]{escape(name)}[/]\n{_shown(text)}\n")

    @contextlib.contextmanager
    def live(self, watch: Watch) -> Iterator[Live]:
        """Progress of the trials that are watched, which is told of everything before this is."""
        if self.console.is_terminal and not self.quiet:
            with Bars(self.console, watch) as bars:
                yield bars
        else:
            yield Lines(self.say, watch)

    @contextlib.contextmanager
    def redrawn(self) -> Iterator[Callable[[State], None]]:
        """Shows how a sweep stands, time and again in place."""
        with Redrawn(console=self.console, transient=True) as place:
            yield lambda state: place.update(view(state, self.console.width), refresh=True)

    def status(self, state: State, notes: Sequence[str]) -> None:
        """How a sweep stands, and what there is to say of it."""
        self.console.print(view(state, self.console.width), soft_wrap=False)
        for note in notes:
            self.say(note)


def _shown(text: str) -> str:
    """A text of several lines, without what a terminal would act on."""
    return escape("\n".join(map(printable, text.splitlines())))


def _plan_cells(plan: TrialPlan | None) -> list[str]:
    """Parameters, tokens, steps, PFLOPs, windows at a time, GiB of the device, GiB of disk, time."""
    if plan is None:
        return ["?"] * 8
    about, fit = "" if plan.exact else "~", plan.fit
    return [
        _in_units(plan.shape.parameters) if plan.shape else "?",
        about + _in_units(plan.tokens),
        f"{about}{plan.steps:,}",
        "?" if plan.flops is None else f"{plan.flops / 1e15:,.3g}",
        "?" if fit is None else f"{fit.micro_batch_size}{'r' if fit.recompute else ''}",
        "?" if plan.peak_bytes is None else f"{plan.peak_bytes / 2**30:.1f}",
        "?" if plan.checkpoint_bytes is None else f"{plan.checkpoint_bytes / 2**30:.2f}",
        "?" if plan.seconds is None else f"~{duration(plan.seconds)}",
    ]


def _in_units(number: int) -> str:
    """`950`, `13.4k`, `124M`, `1.56G`."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
