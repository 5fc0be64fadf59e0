"""How a sweep stands while a launch runs, as plain data: for the screen, for `raylm status`, for the dashboard."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.events import DEFERRED, PAUSED, TrialListener
from raylm.results.progress import StepMetrics
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, QUEUED, RUNNING, STOPPED, Results, Row

STATUSES = (DONE, RUNNING, QUEUED, INTERRUPTED, PENDING, STOPPED, DIVERGED, FAILED)
"""In the order in which they are shown."""
FINISHED_STATUSES = (DONE, STOPPED, DIVERGED, FAILED)
"""States of trials that running the sweep again leaves as they are."""
CURVE_POINTS = 60
"""Of the loss of a running trial that are kept, twice as many at most: every other one goes then."""
MIN_ESTIMATE_SECONDS = 5.0
"""A launch that has run for less says nothing of the time left."""


@dataclass(frozen=True)
class RunningTrial:
    """A trial that runs."""

    run: str
    since: float
    """When this attempt began, in seconds since 1970."""
    step: StepMetrics | None = None
    """Its last one that was told."""
    curve: tuple[tuple[int, float], ...] = ()
    """Training loss at some steps of this attempt."""

    def with_step(self, step: StepMetrics) -> RunningTrial:
        """The same after a step; a word of an attempt that has died may come late, and be ahead."""
        if self.step is not None and step.step == self.step.step:
            return self
        behind = self.step is not None and step.step < self.step.step
        curve = (*(() if behind else self.curve), (step.step, step.loss))
        return replace(self, step=step, curve=curve if len(curve) < 2 * CURVE_POINTS else curve[::2])


@dataclass(frozen=True)
class BestTrial:
    """The lowest adj val loss on a dataset."""

    run: str
    adj_val_loss: float
    """In nats per word."""


@dataclass(frozen=True)
class SweepState:
    """How a sweep stands."""

    sweep: str
    total: int
    """Trials, of a search with those that it has not suggested yet."""
    counts: Mapping[str, int]
    """Trials by their state, without zeros, in the order of `STATES`."""
    running: tuple[RunningTrial, ...] = ()
    best: Mapping[str, BestTrial] = dataclasses.field(default_factory=dict)
    """By dataset, of done trials and of what was evaluated in this launch."""
    share: float = 0.0
    """Of the sweep's work that is done, 0 to 1."""
    seconds_left: float | None = None
    """At the rate of this launch; None where that is not known yet."""
    pausing: str = ""
    """Why all running trials are saving themselves, if they are."""
    told: float = 0.0
    """When this was so, in seconds since 1970."""

    @property
    def num_finished(self) -> int:
        """Trials that running the sweep again leaves as they are."""
        return sum(number for state, number in self.counts.items() if state in FINISHED_STATUSES)

    @property
    def tokens_per_second(self) -> float:
        """Of all running trials together."""
        return sum(one.step.tokens_per_second for one in self.running if one.step)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SweepState:
        """What `dataclasses.asdict` gave, also after a way through JSON."""
        running = tuple(
            RunningTrial(
                one["run"],
                one["since"],
                StepMetrics(**one["step"]) if one["step"] else None,
                tuple((int(step), float(loss)) for step, loss in one["curve"]),
            )
            for one in data["running"]
        )
        best = {dataset: BestTrial(**one) for dataset, one in data["best"].items()}
        return cls(**{**data, "running": running, "best": best})


def idle_state(results: Results) -> SweepState:
    """How a sweep stands of which nothing runs."""
    counted = {state: results.count(state) for state in STATUSES}
    shares = [1.0 if row.is_finished else _fraction_done(row) for row in results.rows]
    best = {
        dataset: BestTrial(row.config.run_name, row.metrics.adj_val_loss)
        for dataset, row in results.best_by_dataset.items()
        if row.metrics
    }
    counts = {state: number for state, number in counted.items() if number}
    return SweepState(
        results.storage.name,
        len(results.rows),
        counts,
        (),
        best,
        math.fsum(shares) / max(len(shares), 1),
        told=time.time(),
    )


def _fraction_done(row: Row) -> float:
    """How much of a trial is done in its latest checkpoint."""
    return (
        row.latest_checkpoint.progress.step / row.latest_checkpoint.progress.total_steps
        if row.latest_checkpoint
        else 0.0
    )


def apply_live_state(results: Results, state: SweepState) -> Results:
    """The rows as they are while a command runs the sweep: none is interrupted or missing then."""
    running = {one.run for one in state.running}

    def status(row: Row) -> str:
        return RUNNING if row.config.run_name in running else row.status if row.is_finished else QUEUED

    return replace(results, rows=[replace(row, status=status(row)) for row in results.rows])


class SweepMonitor(TrialListener):
    """Listens to a launch, and says at any moment how the sweep stands. Told and asked by several threads."""

    def __init__(
        self,
        sweep: str,
        results: Results,
        num_trials: int,
        estimate_cost: Callable[[TrialConfig], float],
        *,
        retry_failed: bool = False,
    ) -> None:
        """A watch on a launch that begins now.

        Args:
            results: how the sweep stands.
            total: trials that there are, or may be.
            work: what a trial takes as a whole, in whatever unit.
            retry_failed: whether failed rows are to be begun again.
        """
        self._lock = threading.Lock()
        self._sweep, self._num_trials, self._estimate_cost = sweep, num_trials, estimate_cost
        ended = [row for row in results.rows if row.is_finished and not (retry_failed and row.status == FAILED)]
        self._statuses = {row.config.run_name: row.status for row in ended}
        """Of the trials that do not wait."""
        self._costs = {row.config.run_name: estimate_cost(row.config) for row in results.rows}
        self._initial_fractions = {row.config.run_name: _fraction_done(row) for row in results.rows}
        self._fractions = dict(self._initial_fractions)
        self._best = dict(idle_state(results).best)
        self._running: dict[str, RunningTrial] = {}
        self._pause_reason = ""
        self._start_time: float | None = None

    def on_trial_start(self, trial: TrialConfig) -> None:
        """See `Live`."""
        run_name = trial.run_name
        with self._lock:
            self._start_time = self._start_time or time.monotonic()
            self._statuses[run_name] = RUNNING
            self._running[run_name] = RunningTrial(run_name, time.time())
            if run_name not in self._costs:
                self._costs[run_name] = self._estimate_cost(trial)

    def on_step(self, trial: TrialConfig, step: StepMetrics) -> None:
        """See `Live`."""
        run_name = trial.run_name
        with self._lock:
            if run_name in self._running:
                self._fractions[run_name] = step.fraction_done
                self._running[run_name] = self._running[run_name].with_step(step)

    def on_evaluate(self, trial: TrialConfig, metrics: Mapping[str, Any]) -> None:
        """See `Live`."""
        run_name = trial.run_name
        with self._lock:
            dataset, loss = trial.dataset, metrics.get("adj_val_loss", math.inf)
            if dataset not in self._best or loss < self._best[dataset].adj_val_loss:
                self._best[dataset] = BestTrial(run_name, loss)

    def on_retry(self, trial: TrialConfig, reason: str) -> None:
        """See `Live`."""
        run_name = trial.run_name
        with self._lock:
            self._running.pop(run_name, None)
            self._statuses.pop(run_name, None)

    def on_trial_end(self, trial: TrialConfig, status: str, reason: str) -> None:
        """See `Live`."""
        run_name = trial.run_name
        with self._lock:
            self._running.pop(run_name, None)
            self._statuses.pop(run_name, None)
            if status != DEFERRED:
                self._statuses[run_name] = INTERRUPTED if status == PAUSED else status
            if status == DONE:
                self._fractions[run_name] = 1.0

    def on_pause(self, reason: str) -> None:
        """See `Live`."""
        with self._lock:
            self._pause_reason = reason

    def snapshot(self) -> SweepState:
        """How the sweep stands now."""
        with self._lock:
            states = list(self._statuses.values())
            counted = {state: states.count(state) for state in STATUSES} | {QUEUED: self._num_trials - len(states)}
            share, seconds_left = self._estimate()
            return SweepState(
                sweep=self._sweep,
                total=self._num_trials,
                counts={state: number for state, number in counted.items() if number > 0},
                running=tuple(self._running.values()),
                best=dict(self._best),
                share=share,
                seconds_left=seconds_left,
                pausing=self._pause_reason,
                told=time.time(),
            )

    def _estimate(self) -> tuple[float, float | None]:
        """Share of the sweep's work that is done; seconds that the rest takes at the rate of this launch so far."""
        shares = {
            run: 1.0 if self._statuses.get(run) in FINISHED_STATUSES else self._fractions.get(run, 0.0)
            for run in self._costs
        }
        known = math.fsum(self._costs.values())
        unknown = (self._num_trials - len(self._costs)) * (known / len(self._costs) if self._costs else 1.0)
        left = math.fsum(work * (1 - shares[run]) for run, work in self._costs.items()) + unknown
        done = math.fsum(
            work * (self._fractions.get(run, 0.0) - self._initial_fractions.get(run, 0.0))
            for run, work in self._costs.items()
        )
        share = 1 - left / max(known + unknown, 1e-9)
        took = time.monotonic() - self._start_time if self._start_time else 0.0
        if took < MIN_ESTIMATE_SECONDS or done <= 0:
            return share, None
        longest = max((one.step.seconds_left for one in self._running.values() if one.step), default=0.0)
        return share, max(left / done * took, longest)
