"""What is told of a launch's trials while they run, and to how many. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from raylm.results.progress import Step

PAUSED, SET_ASIDE = "paused", "set aside"
"""How a trial can end that is to go on: in a later launch; or in this one, alone, as it ran out of memory."""
PAUSING = "running trials save themselves, which may take 25 s; Ctrl-C leaves at once"


class Live(Protocol):
    """What is told of the trials while they run."""

    def started(self, run: str) -> None:
        """A trial begins, for the first time or again."""

    def stepped(self, run: str, step: Step) -> None:
        """How a trial is going; the same again where nothing has happened since."""

    def evaluated(self, run: str, metrics: Mapping[str, Any]) -> None:
        """A trial was evaluated."""

    def retried(self, run: str, reason: str) -> None:
        """A trial's attempt ended badly, or its machine is to go; it is started again."""

    def ended(self, run: str, status: str, reason: str) -> None:
        """A trial is done, stopped, diverged or failed, or paused or set aside."""

    def pausing(self, reason: str) -> None:
        """All running trials are to save themselves and end."""


def evaluation(metrics: Mapping[str, Any]) -> str:
    """What an evaluation has given, in a line."""
    losses = f"train loss {metrics['train_loss']:.3f}, val loss {metrics['val_loss']:.3f}"
    return f"epoch {metrics['epoch']}: {losses}, adj val loss {metrics['adj_val_loss']:.3f}"


class Several:
    """Tells each of several what it is told, in their order."""

    def __init__(self, listeners: Sequence[Live]) -> None:
        self._listeners = listeners

    def started(self, run: str) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.started(run)

    def stepped(self, run: str, step: Step) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.stepped(run, step)

    def evaluated(self, run: str, metrics: Mapping[str, Any]) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.evaluated(run, metrics)

    def retried(self, run: str, reason: str) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.retried(run, reason)

    def ended(self, run: str, status: str, reason: str) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.ended(run, status, reason)

    def pausing(self, reason: str) -> None:
        """See `Live`."""
        for one in self._listeners:
            one.pausing(reason)
