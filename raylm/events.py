"""What is told of a launch's trials while they run, and to how many. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from raylm.results.progress import StepMetrics

PAUSED, DEFERRED = "paused", "set aside"
"""How a trial can end that is to go on: in a later launch; or in this one, alone, as it ran out of memory."""
PAUSING_HINT = "running trials save themselves, which may take 25 s; Ctrl-C leaves at once"


class TrialListener(Protocol):
    """What is told of the trials while they run."""

    def on_trial_start(self, run_name: str) -> None:
        """A trial begins, for the first time or again."""

    def on_step(self, run_name: str, step: StepMetrics) -> None:
        """How a trial is going; the same again where nothing has happened since."""

    def on_evaluate(self, run_name: str, metrics: Mapping[str, Any]) -> None:
        """A trial was evaluated."""

    def on_retry(self, run_name: str, reason: str) -> None:
        """A trial's attempt ended badly, or its machine is to go; it is started again."""

    def on_trial_end(self, run_name: str, status: str, reason: str) -> None:
        """A trial is done, stopped, diverged or failed, or paused or set aside."""

    def on_pause(self, reason: str) -> None:
        """All running trials are to save themselves and end."""


def format_evaluation(metrics: Mapping[str, Any]) -> str:
    """What an evaluation has given, in a line."""
    losses = f"train loss {metrics['train_loss']:.3f}, val loss {metrics['val_loss']:.3f}"
    return f"epoch {metrics['epoch']}: {losses}, adj val loss {metrics['adj_val_loss']:.3f}"


class Listeners:
    """Tells each of several what it is told, in their order."""

    def __init__(self, listeners: Sequence[TrialListener]) -> None:
        self._listeners = listeners

    def on_trial_start(self, run_name: str) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.on_trial_start(run_name)

    def on_step(self, run_name: str, step: StepMetrics) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.on_step(run_name, step)

    def on_evaluate(self, run_name: str, metrics: Mapping[str, Any]) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.on_evaluate(run_name, metrics)

    def on_retry(self, run_name: str, reason: str) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.on_retry(run_name, reason)

    def on_trial_end(self, run_name: str, status: str, reason: str) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.on_trial_end(run_name, status, reason)

    def on_pause(self, reason: str) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.on_pause(reason)
