"""Trial events and their listeners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.results.progress import StepMetrics
from raylm.units import pluralize

Notify = Callable[[str], None]
"""Shows a note to the user."""
ShowProgress = Callable[[str], AbstractContextManager[None]]
"""Returns a context that shows a text while work is in progress."""

PAUSED, DEFERRED = "paused", "deferred"
"""Statuses of a trial that ends unfinished: it resumes in a later launch, or later in this one, alone, after it ran
out of memory beside others."""
PAUSE_TIMEOUT_SECONDS = 25.0
"""Time for running trials to save a checkpoint; after it they are stopped."""
PAUSING_HINT = (
    f"running trials save a checkpoint, which takes up to {PAUSE_TIMEOUT_SECONDS:.0f} s; "
    "press Ctrl-C again to exit at once"
)


class TrialListener:
    """Base class of listeners for trial events. Its methods do nothing: override those that are needed.

    Steps come from a thread of their own, so that the last step of a trial may arrive after its end. A signal handler
    calls `on_pause`, possibly while another event is handled in the same thread.
    """

    def on_trial_start(self, trial: TrialConfig) -> None:
        """Handle the start of a trial, its first attempt or a later one."""

    def on_step(self, trial: TrialConfig, step: StepMetrics) -> None:
        """Handle the latest step of a running trial. Called again with the same step if there is no newer one."""

    def on_evaluate(self, trial: TrialConfig, metrics: Mapping[str, Any]) -> None:
        """Handle an evaluation.

        Args:
            metrics: as `Evaluation.metrics` returns them; losses that are not finite are missing.
        """

    def on_retry(self, trial: TrialConfig, reason: str) -> None:
        """Handle a failed attempt; the trial starts again from its latest checkpoint."""

    def on_trial_end(self, trial: TrialConfig, status: str, reason: str) -> None:
        """Handle the end of a trial, also of one that got its resources too late to start.

        Args:
            status: `done`, `stopped`, `diverged`, `failed`, `paused` or `deferred`.
            reason: one line; empty if the trial is done.
        """

    def on_pause(self, reason: str) -> None:
        """Handle the request that all running trials save a checkpoint and end."""


class Listeners(TrialListener):
    """Forwards every event to each listener, in order."""

    def __init__(self, listeners: Sequence[TrialListener]) -> None:
        self._listeners = listeners

    def on_trial_start(self, trial: TrialConfig) -> None:
        """Forward the event."""
        for listener in self._listeners:
            listener.on_trial_start(trial)

    def on_step(self, trial: TrialConfig, step: StepMetrics) -> None:
        """Forward the event."""
        for listener in self._listeners:
            listener.on_step(trial, step)

    def on_evaluate(self, trial: TrialConfig, metrics: Mapping[str, Any]) -> None:
        """Forward the event."""
        for listener in self._listeners:
            listener.on_evaluate(trial, metrics)

    def on_retry(self, trial: TrialConfig, reason: str) -> None:
        """Forward the event."""
        for listener in self._listeners:
            listener.on_retry(trial, reason)

    def on_trial_end(self, trial: TrialConfig, status: str, reason: str) -> None:
        """Forward the event."""
        for listener in self._listeners:
            listener.on_trial_end(trial, status, reason)

    def on_pause(self, reason: str) -> None:
        """Forward the event."""
        for listener in self._listeners:
            listener.on_pause(reason)


def format_evaluation(metrics: Mapping[str, Any]) -> str:
    """Return the losses of an evaluation as one line, with the epochs so far as `1` or `0.11`, and skipped steps."""
    epochs = metrics.get("epochs_seen", metrics["epoch"])
    losses = f"train loss {metrics['train_loss']:.3f}, val loss {metrics['val_loss']:.3f}"
    count = metrics.get("skipped_steps", 0)
    skipped = f", {pluralize(count, 'step')} skipped in float16" if count else ""
    return f"epoch {round(epochs, 2):g}: {losses}, adj val loss {metrics['adj_val_loss']:.3f}{skipped}"
