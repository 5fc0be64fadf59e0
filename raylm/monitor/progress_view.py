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

from raylm.config.trial import TrialConfig
from raylm.events import PAUSING_HINT, TrialListener, format_evaluation
from raylm.monitor.state import RunningTrial, SweepMonitor, SweepState
from raylm.results.progress import StepMetrics
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, RUNNING, STOPPED
from raylm.units import format_duration

STATUS_COLORS = {
    DONE: "green",
    RUNNING: "cyan",
    STOPPED: "yellow",
    INTERRUPTED: "yellow",
    DIVERGED: "red",
    FAILED: "bold red",
}
STEP_HEADINGS = ("step", "tokens/s", "loss", "left")
COLUMN_GAP = 2
"""Characters between two columns."""
MIN_BAR_WIDTH, MAX_BAR_WIDTH = 6, 30
"""Characters of a bar."""
MIN_NAME_WIDTH = 24
"""Characters of a run's name that are left of it."""
SUFFIX_CHARS = 5
"""Of a shortened name's end."""
RESERVED_LINES = 8
"""Of the view besides those of running trials, and of what is below it."""
REFRESH_PER_SECOND = 4


class LiveView(TrialListener):
    """The view while a launch runs, drawn anew in place; what happened scrolls by above."""

    def __init__(self, console: Console, monitor: SweepMonitor) -> None:
        self._console, self._monitor = console, monitor
        self._live = Redrawn(
            console=console, get_renderable=self._render, refresh_per_second=REFRESH_PER_SECOND, transient=True
        )

    def __enter__(self) -> LiveView:
        """Shows the view."""
        self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        """Takes the view away."""
        self._live.stop()

    def _render(self) -> RenderableType:
        return render_state(self._monitor.snapshot(), self._console.width, self._console.height - RESERVED_LINES)

    def _print(self, text: str) -> None:
        self._console.print(escape(text))

    def on_evaluate(self, trial: TrialConfig, metrics: Mapping[str, Any]) -> None:
        """See `Live`."""
        run_name = trial.run_name
        self._print(f"{run_name}  {format_evaluation(metrics)}")

    def on_retry(self, trial: TrialConfig, reason: str) -> None:
        """See `Live`."""
        run_name = trial.run_name
        self._print(f"{run_name}  starts again from its latest checkpoint: {reason}")

    def on_trial_end(self, trial: TrialConfig, status: str, reason: str) -> None:
        """See `Live`."""
        run_name = trial.run_name
        if status != DONE:
            self._print(f"{run_name}  {status}{': ' + reason if reason else ''}")

    def on_pause(self, reason: str) -> None:
        """See `Live`."""
        self._print(f"{reason}: {PAUSING_HINT}")


def render_state(state: SweepState, width: int, max_running: int = 1000) -> RenderableType:
    """How a sweep stands, in lines of so many characters.

    Args:
        most: running trials that there is room for.
    """
    parts: list[RenderableType] = [_render_heading(state)]
    shown = state.running[: max(max_running, 1)]
    if shown:
        parts.append(_render_trials(shown, width))
    if len(shown) < len(state.running):
        parts.append(Text(f"and {len(state.running) - len(shown):,} more", style="dim"))
    parts.append(_render_total(state))
    for dataset, best in state.best.items():
        prefix = f"best on {dataset}: adj val loss {best.adj_val_loss:.3f}, "
        parts.append(Text(prefix + shorten_name(best.run, max(width - len(prefix), MIN_NAME_WIDTH))))
    return Group(*parts)


def _render_heading(state: SweepState) -> Text:
    """The sweep's name, and its trials by state."""
    text = Text.assemble((state.sweep, "bold"))
    for name, number in state.counts.items():
        text.append(f"  {number:,} {name}", style=STATUS_COLORS.get(name, ""))
    if state.pausing:
        text.append(f"  {state.pausing}: saving", style="yellow")
    return text


def _render_trials(running: tuple[RunningTrial, ...], width: int) -> Table:
    """A line for each running trial; what the numbers leave of it has the name, and then the bar."""
    rows = [_format_step_cells(one.step) for one in running]
    columns = list(zip(STEP_HEADINGS, *rows, strict=True))
    room = width - sum(COLUMN_GAP + max(map(len, column)) for column in columns) - COLUMN_GAP
    bar = min(max(room - max(len(one.run) for one in running), MIN_BAR_WIDTH), MAX_BAR_WIDTH)
    table = Table(box=None, pad_edge=False, padding=(0, COLUMN_GAP, 0, 0), header_style="dim")
    table.add_column("run", no_wrap=True)
    table.add_column("", width=bar)
    for heading in STEP_HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for one, cells in zip(running, rows, strict=True):
        step, total = (one.step.step, one.step.total_steps) if one.step else (0, 1)
        name = escape(shorten_name(one.run, max(room - bar, MIN_NAME_WIDTH)))
        table.add_row(name, ProgressBar(total=total, completed=step, width=bar), *cells)
    return table


def _format_step_cells(step: StepMetrics | None) -> tuple[str, ...]:
    """The numbers of a trial."""
    if step is None:
        return "starting", "", "", ""
    steps, rate = f"{step.step:,}/{step.total_steps:,}", f"{step.tokens_per_second:,.0f}"
    return steps, rate, f"{step.loss:.3f}", format_duration(step.seconds_left)


def _render_total(state: SweepState) -> Table:
    """The line for the whole sweep."""
    told = f"{state.num_finished:,} of {state.total:,} trials"
    told += f", {state.tokens_per_second:,.0f} tokens/s" if state.tokens_per_second else ""
    told += f", ~{format_duration(state.seconds_left)} left" if state.seconds_left is not None else ""
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_row(ProgressBar(total=1, completed=state.share, width=MIN_NAME_WIDTH), f"{100 * state.share:.0f} %", told)
    return line


def shorten_name(name: str, max_chars: int) -> str:
    """A run's name in so many characters at most, its middle left out: what it is stays in front, its id behind."""
    return name if len(name) <= max_chars else f"{name[: max_chars - SUFFIX_CHARS - 1]}…{name[-SUFFIX_CHARS:]}"


STEP_LINE_SECONDS = 30.0
"""Time between two plain lines about the steps of one run."""


class PlainView(TrialListener):
    """Progress as plain lines: one for each thing that happens, and now and then one for a run's steps."""

    def __init__(self, say: Callable[[str], None], monitor: SweepMonitor) -> None:
        self._print, self._monitor = say, monitor
        self._last_printed: dict[str, tuple[float, int]] = {}  # when a line was printed of a run, at which step

    def on_trial_start(self, trial: TrialConfig) -> None:
        """See `Live`."""
        run_name = trial.run_name
        self._last_printed[run_name] = time.monotonic(), 0
        self._print(f"{run_name}  started")

    def on_step(self, trial: TrialConfig, step: StepMetrics) -> None:
        """See `Live`."""
        run_name = trial.run_name
        told, told_step = self._last_printed.get(run_name, (math.inf, 0))
        if time.monotonic() - told > STEP_LINE_SECONDS and step.step > told_step:
            self._last_printed[run_name] = time.monotonic(), step.step
            self._print(
                f"{run_name}  step {step.step:,} of {step.total_steps:,}, train loss {step.loss:.3f}, "
                f"{step.tokens_per_second:,.0f} tokens/s, ~{format_duration(step.seconds_left)} left"
            )

    def on_evaluate(self, trial: TrialConfig, metrics: Mapping[str, Any]) -> None:
        """See `Live`."""
        run_name = trial.run_name
        self._last_printed[run_name] = time.monotonic(), metrics["step"]
        self._print(f"{run_name}  {format_evaluation(metrics)}")

    def on_retry(self, trial: TrialConfig, reason: str) -> None:
        """See `Live`."""
        run_name = trial.run_name
        self._last_printed.pop(run_name, None)
        self._print(f"{run_name}  starts again from its latest checkpoint: {reason}")

    def on_trial_end(self, trial: TrialConfig, status: str, reason: str) -> None:
        """See `Live`."""
        run_name = trial.run_name
        self._last_printed.pop(run_name, None)
        state = self._monitor.snapshot()
        left = f", ~{format_duration(state.seconds_left)} left" if state.seconds_left else ""
        self._print(
            f"{run_name}  {status}{': ' + reason if reason else ''} ({state.num_finished:,} of {state.total:,}{left})"
        )

    def on_pause(self, reason: str) -> None:
        """See `Live`."""
        self._print(f"{reason}: {PAUSING_HINT}")
