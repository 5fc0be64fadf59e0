"""Coordinator actor: steps, errors and commands exchanged between running trials and the driver."""

from __future__ import annotations

import enum
import sys
import time
from dataclasses import dataclass

from raylm.results.progress import MicroBatching, StepMetrics
from raylm.tuning import ray_private
from raylm.tuning.cluster import alive_node_ids

REPORT_SECONDS = 0.5
"""Time between two reports of a trial's step."""
CHECKPOINT_SECONDS = 600
"""Maximum time between two checkpoints of a trial, which is the time that the loss of its machine can cost."""
POLL_SECONDS = 1.0
"""Minimum time between two queries of the nodes that are about to leave the cluster."""


MAX_DEATHS = 3
"""Deaths of a trial's processes without a new checkpoint between them after which it has failed."""


class Command(enum.Enum):
    """Command to a running trial."""

    CONTINUE = enum.auto()
    PAUSE = enum.auto()
    """Save a checkpoint and end."""
    MIGRATE = enum.auto()
    """Save a checkpoint and resume on another node: this one is about to leave, such as a spot machine after its
    notice."""


@dataclass
class Attempts:
    """Attempts of a run in this launch."""

    node_id: str = ""
    """Node of the latest attempt."""
    is_running: bool = False
    """True if the latest attempt has started and not ended; its process has died if another attempt starts."""
    deaths: int = 0
    """Deaths since the latest checkpoint."""


class Coordinator:
    """State shared by running trials and the driver. Runs as an actor that takes no CPU."""

    def __init__(self) -> None:
        self._draining_nodes: set[str] = set()
        self._last_poll = 0.0
        self._steps: dict[str, StepMetrics] = {}
        self._errors: dict[str, list[str]] = {}
        self._memory_errors: dict[str, str] = {}
        self._limits: dict[str, MicroBatching] = {}
        self._zero_shot_runs: dict[str, str] = {}
        self._paused = False
        self._attempts: dict[str, Attempts] = {}
        self._restart_reasons: dict[str, str] = {}
        self._first_stages: dict[str, float] = {}

    def report_step(self, run_name: str, node_id: str, step: StepMetrics) -> Command:
        """Record the latest step of a run; return the command for runs on its node."""
        self._steps[run_name] = step
        return self.get_command(node_id)

    def get_command(self, node_id: str) -> Command:
        """Return the command for runs on a node."""
        if self._paused:
            return Command.PAUSE
        if time.monotonic() - self._last_poll > POLL_SECONDS:
            self._draining_nodes, self._last_poll = ray_private.draining_node_ids(), time.monotonic()
        return Command.MIGRATE if node_id in self._draining_nodes else Command.CONTINUE

    def record_stages(self, stages: dict[str, float]) -> None:
        """Record the stages of a trial's process up to its first step, in seconds since 1970: of the first to report.

        For `raylm run -v`.
        """
        self._first_stages = self._first_stages or stages

    def get_first_stages(self) -> dict[str, float]:
        """Return the stages that were recorded first; empty if no trial of this launch has made a step."""
        return self._first_stages

    def get_steps(self) -> dict[str, StepMetrics]:
        """Return the latest step of each run, by run name."""
        return self._steps

    def start_attempt(self, run_name: str, node_id: str) -> int:
        """Record the start of an attempt of a run; return its deaths since its latest checkpoint.

        The loss of a node is no death: it is not the trial's fault.
        """
        attempts = self._attempts.setdefault(run_name, Attempts())
        if attempts.is_running and attempts.node_id in alive_node_ids():
            attempts.deaths += 1
        attempts.node_id, attempts.is_running = node_id, True
        return attempts.deaths

    def end_attempt(self, run_name: str) -> None:
        """Record that the latest attempt of a run has ended by itself, and forget its latest step."""
        self._steps.pop(run_name, None)
        self._attempts.setdefault(run_name, Attempts()).is_running = False

    def record_checkpoint(self, run_name: str) -> None:
        """Record that a checkpoint of a run is in storage."""
        self._attempts.setdefault(run_name, Attempts()).deaths = 0

    def record_error(self, run_name: str, message: str) -> int:
        """Record an error of a run, which ends its attempt; return its number of errors in this launch."""
        self.end_attempt(run_name)
        self._errors.setdefault(run_name, []).append(message)
        return len(self._errors[run_name])

    def get_errors(self, run_name: str) -> list[str]:
        """Return the errors of a run in this launch, oldest first."""
        return self._errors.get(run_name, [])

    def record_restart(self, run_name: str, reason: str) -> None:
        """Record the reason for a run's restart, and forget its latest step."""
        self._restart_reasons[run_name] = reason
        self._steps.pop(run_name, None)

    def get_restart_reason(self, run_name: str) -> str:
        """Return the reason for a run's last restart, or an empty string if it was not restarted."""
        return self._restart_reasons.get(run_name, "")

    def record_memory_error(self, run_name: str, message: str) -> None:
        """Record that a run exceeds its share of memory while memory is short; an empty message clears it."""
        self._memory_errors[run_name] = message

    def get_memory_error(self, run_name: str) -> str:
        """Return the memory error of a run's last attempt, or an empty string."""
        return self._memory_errors.get(run_name, "")

    def micro_batching_limit(self, shape: str, micro_batching: MicroBatching | None = None) -> MicroBatching | None:
        """Return the largest micro-batching for trials of a shape, or None if none ran out of memory.

        Args:
            shape: key of trials with equal memory needs.
            micro_batching: micro-batching that a trial fell back to; None: no new limit.
        """
        if micro_batching is not None:
            self._limits[shape] = micro_batching.clamp(self._limits.get(shape), max_windows=sys.maxsize)
        return self._limits.get(shape)

    def claim_zero_shot(self, key: str, run_name: str) -> bool:
        """Return whether a run is to compute the loss of its model before fine-tuning.

        The first one that asks is, or after an error of that one the next.

        Args:
            key: equal for runs that start from the same loss.
            run_name: the run that asks.
        """
        claimant = self._zero_shot_runs.get(key, run_name)
        if claimant != run_name and not self.get_errors(claimant):
            return False
        self._zero_shot_runs[key] = run_name
        return True

    def pause_all(self) -> None:
        """Command all runs to save a checkpoint and end."""
        self._paused = True
