"""What running trials and the driver tell each other: through one actor, without waiting for each other."""

from __future__ import annotations

import enum
import time

from ray._private.state import state as ray_state

from raylm.results.progress import MicroBatching, StepMetrics

REPORT_SECONDS = 0.5
"""Time between two words to the driver on how far a trial is."""
CHECKPOINT_SECONDS = 600
"""A trial is saved this often at least: what the loss of its machine can cost."""
POLL_SECONDS = 1.0
"""Time between two questions to Ray, which nodes are about to leave."""


class Command(enum.Enum):
    """What a running trial is told to do."""

    CONTINUE = enum.auto()
    PAUSE = enum.auto()
    """Save itself and end."""
    MIGRATE = enum.auto()
    """Save itself and go on elsewhere: its node is about to leave the cluster, as a spot machine after its notice."""


class Coordinator:
    """What running trials and the driver tell each other. Runs as an actor without a share of a CPU."""

    def __init__(self) -> None:
        self._draining_nodes: set[str] = set()
        self._last_poll = 0.0
        self._steps: dict[str, StepMetrics] = {}
        self._errors: dict[str, list[str]] = {}
        self._memory_errors: dict[str, str] = {}
        self._limits: dict[str, MicroBatching] = {}
        self._paused = False
        self._restart_reasons: dict[str, str] = {}

    def report_step(self, run_name: str, node_id: str, step: StepMetrics) -> Command:
        """Takes down how far a run is; says what a run on this node is to do."""
        self._steps[run_name] = step
        return self.get_command(node_id)

    def get_command(self, node_id: str) -> Command:
        """What runs on a node are to do."""
        if self._paused:
            return Command.PAUSE
        if time.monotonic() - self._last_poll > POLL_SECONDS:
            self._draining_nodes, self._last_poll = set(ray_state.get_draining_nodes()), time.monotonic()
        return Command.MIGRATE if node_id in self._draining_nodes else Command.CONTINUE

    def get_steps(self) -> dict[str, StepMetrics]:
        """How each run is going."""
        return self._steps

    def record_error(self, run_name: str, message: str) -> int:
        """Takes down an error of a run; says how many it has had in this launch."""
        self._errors.setdefault(run_name, []).append(message)
        return len(self._errors[run_name])

    def get_errors(self, run_name: str) -> list[str]:
        """What was taken down of a run's errors."""
        return self._errors.get(run_name, [])

    def record_restart(self, run_name: str, reason: str) -> None:
        """Takes down why a run is started again; how far it was is no longer so."""
        self._restart_reasons[run_name] = reason
        self._steps.pop(run_name, None)

    def get_restart_reason(self, run_name: str) -> str:
        """What was taken down of that; nothing where it begins for the first time."""
        return self._restart_reasons.get(run_name, "")

    def record_memory_error(self, run_name: str, message: str) -> None:
        """Takes down that a run takes more than its part while memory is short; nothing: that it has ended well."""
        self._memory_errors[run_name] = message

    def get_memory_error(self, run_name: str) -> str:
        """What was taken down of a run's memory: of one that begins again, why it ended."""
        return self._memory_errors.get(run_name, "")

    def micro_batching_limit(self, shape: str, micro_batching: MicroBatching | None = None) -> MicroBatching | None:
        """What trials of a shape have run out of memory above, taking down another of them if there is one."""
        if micro_batching is not None:
            self._limits[shape] = micro_batching.clamp(self._limits.get(shape))
        return self._limits.get(shape)

    def pause_all(self) -> None:
        """Has all runs save themselves and end."""
        self._paused = True
