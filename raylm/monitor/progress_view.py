"""How a sweep stands, in a terminal: counts, a bar for each running trial and one for all, the best so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live as Redrawn
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raylm.errors import duration
from raylm.events import PAUSING, evaluation
from raylm.monitor.state import Running, State, Watch
from raylm.results.progress import Step
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, RUNNING, STOPPED

COLOURS = {
    DONE: "green",
    RUNNING: "cyan",
    STOPPED: "yellow",
    INTERRUPTED: "yellow",
    DIVERGED: "red",
    FAILED: "bold red",
}
HEADINGS = ("step", "tokens/s", "loss", "left")
SPACE = 2
"""Characters between two columns."""
NARROWEST, WIDEST = 6, 30
"""Characters of a bar."""
SHORTEST_NAME = 24
"""Characters of a run's name that are left of it."""
ID_LETTERS = 5
"""Of a shortened name's end."""
OTHER_LINES = 8
"""Of the view besides those of running trials, and of what is below it."""
LOOKS_PER_SECOND = 4


class Bars:
    """The view while a launch runs, drawn anew in place; what happened scrolls by above."""

    def __init__(self, console: Console, watch: Watch) -> None:
        self._console, self._watch = console, watch
        self._drawn = Redrawn(
            console=console, get_renderable=self._view, refresh_per_second=LOOKS_PER_SECOND, transient=True
        )

    def __enter__(self) -> Bars:
        """Shows the view."""
        self._drawn.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        """Takes the view away."""
        self._drawn.stop()

    def _view(self) -> RenderableType:
        return view(self._watch.state(), self._console.width, self._console.height - OTHER_LINES)

    def _say(self, text: str) -> None:
        self._console.print(escape(text))

    def started(self, run: str) -> None:
        """The view shows it."""

    def stepped(self, run: str, step: Step) -> None:
        """The view shows it."""

    def evaluated(self, run: str, metrics: Mapping[str, Any]) -> None:
        """See `Live`."""
        self._say(f"{run}  {evaluation(metrics)}")

    def retried(self, run: str, reason: str) -> None:
        """See `Live`."""
        self._say(f"{run}  starts again from its latest checkpoint: {reason}")

    def ended(self, run: str, status: str, reason: str) -> None:
        """See `Live`."""
        if status != DONE:
            self._say(f"{run}  {status}{': ' + reason if reason else ''}")

    def pausing(self, reason: str) -> None:
        """See `Live`."""
        self._say(f"{reason}: {PAUSING}")


def view(state: State, width: int, most: int = 1000) -> RenderableType:
    """How a sweep stands, in lines of so many characters.

    Args:
        most: running trials that there is room for.
    """
    parts: list[RenderableType] = [_heading(state)]
    shown = state.running[: max(most, 1)]
    if shown:
        parts.append(_trials(shown, width))
    if len(shown) < len(state.running):
        parts.append(Text(f"and {len(state.running) - len(shown):,} more", style="dim"))
    parts.append(_all(state))
    for dataset, best in state.best.items():
        prefix = f"best on {dataset}: adj val loss {best.adj_val_loss:.3f}, "
        parts.append(Text(prefix + shortened(best.run, max(width - len(prefix), SHORTEST_NAME))))
    return Group(*parts)


def _heading(state: State) -> Text:
    """The sweep's name, and its trials by state."""
    text = Text.assemble((state.sweep, "bold"))
    for name, number in state.counts.items():
        text.append(f"  {number:,} {name}", style=COLOURS.get(name, ""))
    if state.pausing:
        text.append(f"  {state.pausing}: saving", style="yellow")
    return text


def _trials(running: tuple[Running, ...], width: int) -> Table:
    """A line for each running trial; what the numbers leave of it has the name, and then the bar."""
    rows = [_cells(one.step) for one in running]
    columns = list(zip(HEADINGS, *rows, strict=True))
    room = width - sum(SPACE + max(map(len, column)) for column in columns) - SPACE
    bar = min(max(room - max(len(one.run) for one in running), NARROWEST), WIDEST)
    table = Table(box=None, pad_edge=False, padding=(0, SPACE, 0, 0), header_style="dim")
    table.add_column("run", no_wrap=True)
    table.add_column("", width=bar)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for one, cells in zip(running, rows, strict=True):
        step, total = (one.step.step, one.step.total_steps) if one.step else (0, 1)
        name = escape(shortened(one.run, max(room - bar, SHORTEST_NAME)))
        table.add_row(name, ProgressBar(total=total, completed=step, width=bar), *cells)
    return table


def _cells(step: Step | None) -> tuple[str, ...]:
    """The numbers of a trial."""
    if step is None:
        return "starting", "", "", ""
    steps, rate = f"{step.step:,}/{step.total_steps:,}", f"{step.tokens_per_second:,.0f}"
    return steps, rate, f"{step.loss:.3f}", duration(step.seconds_left)


def _all(state: State) -> Table:
    """The line for the whole sweep."""
    told = f"{state.ended:,} of {state.total:,} trials"
    told += f", {state.tokens_per_second:,.0f} tokens/s" if state.tokens_per_second else ""
    told += f", ~{duration(state.seconds_left)} left" if state.seconds_left is not None else ""
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_row(ProgressBar(total=1, completed=state.share, width=SHORTEST_NAME), f"{100 * state.share:.0f} %", told)
    return line


def shortened(text: str, most: int) -> str:
    """A run's name in so many characters at most, its middle left out: what it is stays in front, its id behind."""
    return text if len(text) <= most else f"{text[: most - ID_LETTERS - 1]}…{text[-ID_LETTERS:]}"


PLAIN_SECONDS = 30.0
"""Time between two plain lines about the steps of one run."""


class Lines:
    """Progress as plain lines: one for each thing that happens, and now and then one for a run's steps."""

    def __init__(self, say: Callable[[str], None], watch: Watch) -> None:
        self._say, self._watch = say, watch
        self._last: dict[str, tuple[float, int]] = {}  # when a line was printed of a run, at which step

    def started(self, run: str) -> None:
        """See `Live`."""
        self._last[run] = time.monotonic(), 0
        self._say(f"{run}  started")

    def stepped(self, run: str, step: Step) -> None:
        """See `Live`."""
        told, told_step = self._last.get(run, (math.inf, 0))
        if time.monotonic() - told > PLAIN_SECONDS and step.step > told_step:
            self._last[run] = time.monotonic(), step.step
            self._say(
                f"{run}  step {step.step:,} of {step.total_steps:,}, train loss {step.loss:.3f}, "
                f"{step.tokens_per_second:,.0f} tokens/s, ~{duration(step.seconds_left)} left"
            )

    def evaluated(self, run: str, metrics: Mapping[str, Any]) -> None:
        """See `Live`."""
        self._last[run] = time.monotonic(), metrics["step"]
        self._say(f"{run}  {evaluation(metrics)}")

    def retried(self, run: str, reason: str) -> None:
        """See `Live`."""
        self._last.pop(run, None)
        self._say(f"{run}  starts again from its latest checkpoint: {reason}")

    def ended(self, run: str, status: str, reason: str) -> None:
        """See `Live`."""
        self._last.pop(run, None)
        state = self._watch.state()
        left = f", ~{duration(state.seconds_left)} left" if state.seconds_left else ""
        self._say(f"{run}  {status}{': ' + reason if reason else ''} ({state.ended:,} of {state.total:,}{left})")

    def pausing(self, reason: str) -> None:
        """See `Live`."""
        self._say(f"{reason}: {PAUSING}")
