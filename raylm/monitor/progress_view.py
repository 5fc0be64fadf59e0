"""Progress of a sweep in a terminal: a live view with bars, or plain lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raylm.config.trial import TrialConfig
from raylm.events import PAUSING_HINT, TrialListener, format_evaluation
from raylm.monitor.live_table import MIN_NAME_WIDTH, render_trials, shorten_name
from raylm.monitor.state import SweepMonitor, SweepState
from raylm.results.progress import StepMetrics
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, QUEUED, RUNNING, STOPPED
from raylm.units import format_duration

STATUS_COLORS = {
    DONE: "green",
    RUNNING: "cyan",
    STOPPED: "yellow",
    INTERRUPTED: "yellow",
    DIVERGED: "red",
    FAILED: "bold red",
}
RESERVED_LINES = 8
"""Lines of the terminal that are not for running trials."""
REFRESH_PER_SECOND = 4
STEP_LINE_SECONDS = 30.0
"""Minimum time between two plain lines about the steps of a run."""


class EventLog(TrialListener):
    """Base of the views: prints a line for each evaluation, each failed attempt, and each trial that is not done."""

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self._print = print_line

    def on_evaluate(self, trial: TrialConfig, metrics: Mapping[str, Any]) -> None:
        """Print the losses."""
        self._print(f"{trial.run_name}  {format_evaluation(metrics)}")

    def on_retry(self, trial: TrialConfig, reason: str) -> None:
        """Print the reason."""
        self._print(f"{trial.run_name}  starts again from its latest checkpoint: {reason}")

    def on_trial_end(self, trial: TrialConfig, status: str, reason: str) -> None:
        """Print status and reason, unless the trial is done."""
        if status != DONE:
            self._print(format_end(trial, status, reason))

    def on_pause(self, reason: str) -> None:
        """Print the reason, and how long a pause may take."""
        self._print(f"{reason}: {PAUSING_HINT}")


def format_end(trial: TrialConfig, status: str, reason: str) -> str:
    """Return the end of a trial as one line."""
    return f"{trial.run_name}  {status}{': ' + reason if reason else ''}"


class LiveView(EventLog):
    """Context manager that redraws the state of the sweep in place; lines about events scroll by above it."""

    def __init__(self, console: Console, monitor: SweepMonitor) -> None:
        super().__init__(lambda text: console.print(escape(text)))
        self._console, self._monitor = console, monitor
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=REFRESH_PER_SECOND, transient=True
        )

    def __enter__(self) -> LiveView:
        """Start to draw."""
        self._live.start(refresh=True)
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the view."""
        self._live.stop()

    def _render(self) -> RenderableType:
        return render_state(self._monitor.snapshot(), self._console.width, self._console.height - RESERVED_LINES)


class PlainView(EventLog):
    """Prints a line for each event, and from time to time a line about the steps of a run."""

    def __init__(self, print_line: Callable[[str], None], monitor: SweepMonitor) -> None:
        super().__init__(print_line)
        self._monitor = monitor
        self._lock = threading.Lock()
        """Held while a start or a step is printed: no step comes before the start of its trial or after its end."""
        self._last_lines: dict[str, tuple[float, int]] = {}
        """Time and step of the latest line about each running trial."""

    def on_trial_start(self, trial: TrialConfig) -> None:
        """Print that the trial has started."""
        with self._lock:
            self._last_lines[trial.run_name] = time.monotonic(), 0
            self._print(f"{trial.run_name}  started")

    def on_step(self, trial: TrialConfig, step: StepMetrics) -> None:
        """Print a new step of a running trial, if there was no line about the trial for a while."""
        run_name = trial.run_name
        with self._lock:
            if run_name not in self._last_lines:
                return
            printed_at, printed_step = self._last_lines[run_name]
            if time.monotonic() - printed_at > STEP_LINE_SECONDS and step.step > printed_step:
                self._last_lines[run_name] = time.monotonic(), step.step
                self._print(
                    f"{run_name}  step {step.step:,} of {step.total_steps:,}, train loss {step.loss:.3f}, "
                    f"{step.tokens_per_second:,.0f} tokens/s, ~{format_duration(step.seconds_left)} left"
                )

    def on_evaluate(self, trial: TrialConfig, metrics: Mapping[str, Any]) -> None:
        """Print the losses."""
        with self._lock:
            self._last_lines[trial.run_name] = time.monotonic(), metrics["step"]
        super().on_evaluate(trial, metrics)

    def on_retry(self, trial: TrialConfig, reason: str) -> None:
        """Print the reason."""
        with self._lock:
            self._last_lines.pop(trial.run_name, None)
        super().on_retry(trial, reason)

    def on_trial_end(self, trial: TrialConfig, status: str, reason: str) -> None:
        """Print status, reason, and the state of the whole sweep."""
        with self._lock:
            self._last_lines.pop(trial.run_name, None)
        state = self._monitor.snapshot()
        left = f", ~{format_duration(state.seconds_left)} left" if state.seconds_left else ""
        self._print(f"{format_end(trial, status, reason)} ({state.num_finished:,} of {state.total:,}{left})")


def render_state(state: SweepState, width: int, max_lines: int = 1000) -> RenderableType:
    """Return the state of a sweep as lines for a terminal.

    Args:
        state: the state to render.
        width: characters per line.
        max_lines: maximum number of lines with running trials; one is listed in any case.
    """
    parts: list[RenderableType] = [_render_heading(state)]
    if state.running:
        table, num_listed = render_trials(state.running, width, max_lines)
        parts.append(table)
        if num_listed < len(state.running):
            parts.append(Text(f"and {len(state.running) - num_listed:,} more", style="dim"))
    elif QUEUED in state.counts:
        parts.append(Text("waiting for a trial to start", style="dim"))
    parts.append(_render_total(state))
    for dataset, best in state.best.items():
        prefix = f"best on {dataset}: {best}, "
        parts.append(Text(prefix + shorten_name(best.run_name, max(width - len(prefix), MIN_NAME_WIDTH))))
    return Group(*parts)


def _render_heading(state: SweepState) -> Text:
    """Return the sweep's name and its number of trials by status."""
    text = Text.assemble((state.sweep, "bold"))
    for status, number in state.counts.items():
        text.append(f"  {number:,} {status}", style=STATUS_COLORS.get(status, ""))
    if state.pause_reason:
        text.append(f"  {state.pause_reason}: saving checkpoints", style="yellow")
    return text


def _render_total(state: SweepState) -> Table:
    """Return the line of the whole sweep."""
    text = f"{state.num_finished:,} of {state.total:,} trials"
    text += f", {state.tokens_per_second:,.0f} tokens/s" if state.tokens_per_second else ""
    text += f", ~{format_duration(state.seconds_left)} left" if state.seconds_left is not None else ""
    bar = ProgressBar(total=1, completed=state.fraction_done, width=MIN_NAME_WIDTH)
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_row(bar, f"{100 * state.fraction_done:.0f} %", text)
    return line
