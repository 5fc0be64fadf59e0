"""State of a sweep while a launch runs, as plain data for the terminal, `raylm status` and the dashboard."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from raylm.config.trial import TrialConfig
from raylm.events import DEFERRED, PAUSED, TrialListener
from raylm.monitor.best_trial import BestTrial as BestTrial
from raylm.report.tables.columns import format_varying_fields
from raylm.results.measures import PER_WORD, Measure
from raylm.results.progress import StepMetrics
from raylm.results.rows import (
    DIVERGED,
    DONE,
    FAILED,
    FINISHED_STATUSES,
    INTERRUPTED,
    PENDING,
    QUEUED,
    RUNNING,
    STOPPED,
    Row,
    SweepRows,
)

STATUSES = (DONE, RUNNING, QUEUED, INTERRUPTED, PENDING, STOPPED, DIVERGED, FAILED)
"""Statuses in display order."""
CURVE_POINTS = 60
"""Minimum length of a long loss curve: at twice as many points, every other one is dropped."""
MIN_ESTIMATE_SECONDS = 5.0
"""Run time of a launch before the remaining time is estimated."""


class RunningTrial(msgspec.Struct, frozen=True, rename={"run_name": "run", "started_at": "since"}):
    """A running trial."""

    run_name: str
    started_at: float
    """Start of this attempt, in seconds since 1970."""
    step: StepMetrics | None = None
    """Latest step; None before the first."""
    curve: tuple[tuple[int, float], ...] = ()
    """(step, training loss) at some steps of this attempt."""
    fields: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Values of the fields that vary in the sweep, as texts."""

    def with_step(self, step: StepMetrics) -> RunningTrial:
        """Return this trial after a step.

        A step before the latest one starts the curve again: the latest was a late message of an attempt that failed.
        """
        if self.step is not None and step.step == self.step.step:
            return self
        is_restart = self.step is not None and step.step < self.step.step
        curve = (*(() if is_restart else self.curve), (step.step, step.loss))
        return msgspec.structs.replace(self, step=step, curve=curve if len(curve) < 2 * CURVE_POINTS else curve[::2])


class SweepState(
    msgspec.Struct,
    frozen=True,
    rename={"fraction_done": "share", "pause_reason": "pausing", "updated_at": "told"},
):
    """State of a sweep at one moment."""

    sweep: str
    """Name of the sweep."""
    total: int
    """Number of trials, including those that a search has not suggested yet."""
    counts: Mapping[str, int]
    """Number of trials by status, without zeros, in the order of `STATUSES`."""
    running: tuple[RunningTrial, ...] = ()
    best: Mapping[str, BestTrial] = msgspec.field(default_factory=dict)
    """Best trial by dataset, among finished trials and evaluations of this launch."""
    fraction_done: float = 0.0
    """Finished part of the sweep's work, 0 to 1."""
    seconds_left: float | None = None
    """Remaining time at the rate of this launch; None if it is not known yet."""
    pause_reason: str = ""
    """Reason why all running trials are saving a checkpoint; empty if they are not."""
    updated_at: float = 0.0
    """Time of this state, in seconds since 1970."""

    @property
    def num_finished(self) -> int:
        """Number of trials that another launch leaves as they are."""
        return sum(number for status, number in self.counts.items() if status in FINISHED_STATUSES)

    @property
    def tokens_per_second(self) -> float:
        """Throughput of all running trials together."""
        return sum(trial.step.tokens_per_second for trial in self.running if trial.step)


def idle_state(results: SweepRows) -> SweepState:
    """Return the state of a sweep that is not running."""
    counts = {status: results.count(status) for status in STATUSES}
    fractions = [1.0 if row.is_finished else _fraction_done(row) for row in results.rows]
    return SweepState(
        sweep=results.storage.name,
        total=len(results.rows),
        counts={status: number for status, number in counts.items() if number},
        best=_best_trials(results, results.measures),
        fraction_done=math.fsum(fractions) / max(len(fractions), 1),
        updated_at=time.time(),
    )


def _best_trials(results: SweepRows, measures: Mapping[str, Measure]) -> dict[str, BestTrial]:
    return {
        dataset: BestTrial.of(row.config, row.metrics.val_loss, row.metrics.adj_val_loss, measures[dataset])
        for dataset, row in results.find_best(measures).items()
        if row.metrics
    }


def _fraction_done(row: Row) -> float:
    """Return the part of a trial that its latest checkpoint holds, 0 to 1."""
    if row.latest_checkpoint is None:
        return 0.0
    return row.latest_checkpoint.progress.step / row.latest_checkpoint.progress.total_steps


def apply_live_state(results: SweepRows, state: SweepState) -> SweepRows:
    """Return the rows of a running sweep: its unfinished trials are running or queued."""
    running = {trial.run_name for trial in state.running}

    def live_status(row: Row) -> str:
        return RUNNING if not running.isdisjoint(row.config.folder_names) else row.status if row.is_finished else QUEUED

    return replace(results, rows=[replace(row, status=live_status(row)) for row in results.rows])


class SweepMonitor(TrialListener):
    """Follows the trials of a launch and returns the state of the sweep at any moment. Thread-safe."""

    def __init__(
        self,
        sweep: str,
        results: SweepRows,
        num_trials: int,
        estimate_cost: Callable[[TrialConfig], float],
        *,
        retry_failed: bool = False,
        measures: Mapping[str, Measure] | None = None,
    ) -> None:
        """Create a monitor for a launch that starts now; it serves all attempts of all its trials.

        Args:
            sweep: name of the sweep.
            results: rows before the launch.
            num_trials: number of trials, of a search the maximum.
            estimate_cost: returns the work of a whole trial, in any unit.
            retry_failed: whether the launch starts failed trials again.
            measures: measure by dataset that its trials are ranked by; None: those of `results`.
        """
        self._measures = measures or results.measures
        self._lock = threading.RLock()  # a signal may call `on_pause` in the thread that holds it
        self._sweep, self._num_trials, self._estimate_cost = sweep, num_trials, estimate_cost
        finished = [row for row in results.rows if row.is_finished and not (retry_failed and row.status == FAILED)]
        self._statuses = {row.config.run_name: row.status for row in finished}
        """Statuses of the trials that are not queued."""
        self._costs = {row.config.run_name: estimate_cost(row.config) for row in results.rows}
        self._initial_fractions = {row.config.run_name: _fraction_done(row) for row in results.rows}
        self._saved_fractions = dict(self._initial_fractions)
        """Parts of the trials that their latest checkpoints hold, as far as it is known: each evaluation saves one."""
        self._fractions = dict(self._initial_fractions)
        self._best = _best_trials(results, self._measures)
        self._trials = {row.config.run_name: row.config for row in results.rows}
        self._fields = format_varying_fields(self._trials)
        self._running: dict[str, RunningTrial] = {}
        self._pause_reason = ""
        self._start_time: float | None = None

    def on_trial_start(self, trial: TrialConfig) -> None:
        """Count the trial as running."""
        run_name = trial.run_name
        with self._lock:
            self._start_time = self._start_time or time.monotonic()
            self._statuses[run_name] = RUNNING
            self._running[run_name] = RunningTrial(run_name, time.time())
            if run_name not in self._costs:
                self._costs[run_name] = self._estimate_cost(trial)
                self._trials[run_name] = trial
                self._fields = format_varying_fields(self._trials)

    def on_step(self, trial: TrialConfig, step: StepMetrics) -> None:
        """Update a running trial; a step of any other trial is late and is dropped.

        A step with a loss that is not finite is dropped too: JSON cannot hold it, and its trial ends.
        """
        run_name = trial.run_name
        with self._lock:
            if run_name in self._running and math.isfinite(step.loss):
                self._fractions[run_name] = step.fraction_done
                self._running[run_name] = self._running[run_name].with_step(step)

    def on_evaluate(self, trial: TrialConfig, metrics: Mapping[str, Any]) -> None:
        """Update the best trial of the dataset."""
        run_name, dataset = trial.run_name, trial.dataset
        measure = self._measures.get(dataset, PER_WORD)
        losses = metrics.get("val_loss", math.inf), metrics.get("adj_val_loss", math.inf)
        with self._lock:
            best = BestTrial.of(trial, *losses, measure) if measure.compares(trial) else None
            if best and best.ranked_loss < (self._best[dataset].ranked_loss if dataset in self._best else math.inf):
                self._best[dataset] = best
            latest = self._running[run_name].step if run_name in self._running else None
            if latest is not None:
                self._saved_fractions[run_name] = metrics["step"] / latest.total_steps

    def on_retry(self, trial: TrialConfig, reason: str) -> None:
        """Count the trial as queued, with the work that its latest checkpoint holds."""
        with self._lock:
            self._requeue(trial.run_name)

    def on_trial_end(self, trial: TrialConfig, status: str, reason: str) -> None:
        """Record the status. A deferred trial is queued; so is one that a pause kept from starting."""
        run_name = trial.run_name
        with self._lock:
            has_started = self._running.pop(run_name, None) is not None
            if status == DEFERRED:
                self._requeue(run_name)
            elif status == PAUSED:
                if has_started:
                    self._statuses[run_name] = INTERRUPTED
            else:
                self._statuses[run_name] = status
            if status == DONE:
                self._fractions[run_name] = 1.0

    def on_pause(self, reason: str) -> None:
        """Show that all running trials are saving a checkpoint."""
        with self._lock:
            self._pause_reason = reason

    def snapshot(self) -> SweepState:
        """Return the state of the sweep now."""
        with self._lock:
            statuses = list(self._statuses.values())
            counts = {status: statuses.count(status) for status in STATUSES}
            counts[QUEUED] = self._num_trials - len(statuses)
            fraction_done, seconds_left = self._estimate()
            return SweepState(
                sweep=self._sweep,
                total=self._num_trials,
                counts={status: number for status, number in counts.items() if number > 0},
                running=tuple(
                    msgspec.structs.replace(trial, fields=self._fields[run]) for run, trial in self._running.items()
                ),
                best=dict(self._best),
                fraction_done=fraction_done,
                seconds_left=seconds_left,
                pause_reason=self._pause_reason,
                updated_at=time.time(),
            )

    def _requeue(self, run_name: str) -> None:
        self._running.pop(run_name, None)
        self._statuses.pop(run_name, None)
        self._fractions[run_name] = self._saved_fractions.get(run_name, 0.0)

    def _estimate(self) -> tuple[float, float | None]:
        """Return the finished part of the sweep's work, and the seconds for the rest at the rate of this launch."""
        fractions = {run: self._fractions.get(run, 0.0) for run in self._costs}
        is_finished = {run: self._statuses.get(run) in FINISHED_STATUSES for run in self._costs}
        known = math.fsum(self._costs.values())
        not_suggested = (self._num_trials - len(self._costs)) * (known / len(self._costs) if self._costs else 1.0)
        left = not_suggested + math.fsum(
            cost * (1 - fractions[run]) for run, cost in self._costs.items() if not is_finished[run]
        )
        done = math.fsum(
            cost * (fractions[run] - self._initial_fractions.get(run, 0.0)) for run, cost in self._costs.items()
        )
        fraction_done = 1 - left / max(known + not_suggested, 1e-9)
        elapsed = time.monotonic() - self._start_time if self._start_time else 0.0
        if elapsed < MIN_ESTIMATE_SECONDS or done <= 0:
            return fraction_done, None
        longest = max((trial.step.seconds_left for trial in self._running.values() if trial.step), default=0.0)
        return fraction_done, max(left / done * elapsed, longest)
