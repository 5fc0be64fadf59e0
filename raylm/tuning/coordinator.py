"""What running trials and the driver tell each other: through one actor, without waiting for each other."""

from __future__ import annotations

import enum
import time

from ray._private.state import state as ray_state

from raylm.results.progress import Fit, Step

SECONDS_BETWEEN_WORDS = 0.5
"""Time between two words to the driver on how far a trial is."""
CHECKPOINT_SECONDS = 600
"""A trial is saved this often at least: what the loss of its machine can cost."""
SECONDS_BETWEEN_LOOKS = 1.0
"""Time between two questions to Ray, which nodes are about to leave."""


class Word(enum.Enum):
    """What a running trial is told to do."""

    GO_ON = enum.auto()
    PAUSE = enum.auto()
    """Save itself and end."""
    MOVE = enum.auto()
    """Save itself and go on elsewhere: its node is about to leave the cluster, as a spot machine after its notice."""


class Board:
    """What running trials and the driver tell each other. Runs as an actor without a share of a CPU."""

    def __init__(self) -> None:
        self._leaving: set[str] = set()
        self._looked = 0.0
        self._steps: dict[str, Step] = {}
        self._errors: dict[str, list[str]] = {}
        self._memory: dict[str, str] = {}
        self._limits: dict[str, Fit] = {}
        self._paused = False
        self._recovered: dict[str, str] = {}

    def step(self, run: str, node: str, step: Step) -> Word:
        """Takes down how far a run is; says what a run on this node is to do."""
        self._steps[run] = step
        return self.word(node)

    def word(self, node: str) -> Word:
        """What runs on a node are to do."""
        if self._paused:
            return Word.PAUSE
        if time.monotonic() - self._looked > SECONDS_BETWEEN_LOOKS:
            self._leaving, self._looked = set(ray_state.get_draining_nodes()), time.monotonic()
        return Word.MOVE if node in self._leaving else Word.GO_ON

    def steps(self) -> dict[str, Step]:
        """How each run is going."""
        return self._steps

    def error(self, run: str, told: str) -> int:
        """Takes down an error of a run; says how many it has had in this launch."""
        self._errors.setdefault(run, []).append(told)
        return len(self._errors[run])

    def errors(self, run: str) -> list[str]:
        """What was taken down of a run's errors."""
        return self._errors.get(run, [])

    def recovered(self, run: str, reason: str) -> None:
        """Takes down why a run is started again; how far it was is no longer so."""
        self._recovered[run] = reason
        self._steps.pop(run, None)

    def why_again(self, run: str) -> str:
        """What was taken down of that; nothing where it begins for the first time."""
        return self._recovered.get(run, "")

    def memory(self, run: str, what: str) -> None:
        """Takes down that a run takes more than its part while memory is short; nothing: that it has ended well."""
        self._memory[run] = what

    def out_of_memory(self, run: str) -> str:
        """What was taken down of a run's memory: of one that begins again, why it ended."""
        return self._memory.get(run, "")

    def limit(self, shape: str, fit: Fit | None = None) -> Fit | None:
        """What trials of a shape have run out of memory above, taking down another of them if there is one."""
        if fit is not None:
            self._limits[shape] = fit.within(self._limits.get(shape))
        return self._limits.get(shape)

    def pause(self) -> None:
        """Has all runs save themselves and end."""
        self._paused = True
