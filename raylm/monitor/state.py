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
from raylm.events import PAUSED, SET_ASIDE
from raylm.results.progress import Step
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, MISSING, RUNNING, STOPPED, WAITING, Results, Row

STATES = (DONE, RUNNING, WAITING, INTERRUPTED, MISSING, STOPPED, DIVERGED, FAILED)
"""In the order in which they are shown."""
ENDED = (DONE, STOPPED, DIVERGED, FAILED)
"""States of trials that running the sweep again leaves as they are."""
CURVE_POINTS = 60
"""Of the loss of a running trial that are kept, twice as many at most: every other one goes then."""
SECONDS_TO_ESTIMATE = 5.0
"""A launch that has run for less says nothing of the time left."""


@dataclass(frozen=True)
class Running:
    """A trial that runs."""

    run: str
    since: float
    """When this attempt began, in seconds since 1970."""
    step: Step | None = None
    """Its last one that was told."""
    curve: tuple[tuple[int, float], ...] = ()
    """Training loss at some steps of this attempt."""

    def stepped(self, step: Step) -> Running:
        """The same after a step; a word of an attempt that has died may come late, and be ahead."""
        if self.step is not None and step.step == self.step.step:
            return self
        behind = self.step is not None and step.step < self.step.step
        curve = (*(() if behind else self.curve), (step.step, step.loss))
        return replace(self, step=step, curve=curve if len(curve) < 2 * CURVE_POINTS else curve[::2])


@dataclass(frozen=True)
class Best:
    """The lowest adj val loss on a dataset."""

    run: str
    adj_val_loss: float
    """In nats per word."""


@dataclass(frozen=True)
class State:
    """How a sweep stands."""

    sweep: str
    total: int
    """Trials, of a search with those that it has not suggested yet."""
    counts: Mapping[str, int]
    """Trials by their state, without zeros, in the order of `STATES`."""
    running: tuple[Running, ...] = ()
    best: Mapping[str, Best] = dataclasses.field(default_factory=dict)
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
    def ended(self) -> int:
        """Trials that running the sweep again leaves as they are."""
        return sum(number for state, number in self.counts.items() if state in ENDED)

    @property
    def tokens_per_second(self) -> float:
        """Of all running trials together."""
        return sum(one.step.tokens_per_second for one in self.running if one.step)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> State:
        """What `dataclasses.asdict` gave, also after a way through JSON."""
        running = tuple(
            Running(
                one["run"],
                one["since"],
                Step(**one["step"]) if one["step"] else None,
                tuple((int(step), float(loss)) for step, loss in one["curve"]),
            )
            for one in data["running"]
        )
        best = {dataset: Best(**one) for dataset, one in data["best"].items()}
        return cls(**{**data, "running": running, "best": best})


def at_rest(results: Results) -> State:
    """How a sweep stands of which nothing runs."""
    counted = {state: results.count(state) for state in STATES}
    shares = [1.0 if row.ended else _share(row) for row in results.rows]
    best = {
        dataset: Best(row.config.run_name, row.measured.adj_val_loss)
        for dataset, row in results.best_by_dataset.items()
        if row.measured
    }
    counts = {state: number for state, number in counted.items() if number}
    return State(
        results.storage.name,
        len(results.rows),
        counts,
        (),
        best,
        math.fsum(shares) / max(len(shares), 1),
        told=time.time(),
    )


def _share(row: Row) -> float:
    """How much of a trial is done in its latest checkpoint."""
    return row.latest.progress.step / row.latest.progress.total_steps if row.latest else 0.0


def while_running(results: Results, state: State) -> Results:
    """The rows as they are while a command runs the sweep: none is interrupted or missing then."""
    running = {one.run for one in state.running}

    def status(row: Row) -> str:
        return RUNNING if row.config.run_name in running else row.status if row.ended else WAITING

    return replace(results, rows=[replace(row, status=status(row)) for row in results.rows])


class Watch:
    """Listens to a launch, and says at any moment how the sweep stands. Told and asked by several threads."""

    def __init__(
        self,
        sweep: str,
        results: Results,
        total: int,
        config_of: Callable[[str], TrialConfig],
        work: Callable[[TrialConfig], float],
        *,
        retry_failed: bool = False,
    ) -> None:
        """A watch on a launch that begins now.

        Args:
            results: how the sweep stands.
            total: trials that there are, or may be.
            config_of: the trial of a run's name.
            work: what a trial takes as a whole, in whatever unit.
            retry_failed: whether failed rows are to be begun again.
        """
        self._lock = threading.Lock()
        self._sweep, self._total, self._config_of, self._work_of = sweep, total, config_of, work
        ended = [row for row in results.rows if row.ended and not (retry_failed and row.status == FAILED)]
        self._states = {row.config.run_name: row.status for row in ended}
        """Of the trials that do not wait."""
        self._work = {row.config.run_name: work(row.config) for row in results.rows}
        self._before = {row.config.run_name: _share(row) for row in results.rows}
        self._share = dict(self._before)
        self._best = dict(at_rest(results).best)
        self._running: dict[str, Running] = {}
        self._pausing = ""
        self._began: float | None = None

    def started(self, run: str) -> None:
        """See `Live`."""
        with self._lock:
            self._began = self._began or time.monotonic()
            self._states[run] = RUNNING
            self._running[run] = Running(run, time.time())
            if run not in self._work:
                self._work[run] = self._work_of(self._config_of(run))

    def stepped(self, run: str, step: Step) -> None:
        """See `Live`."""
        with self._lock:
            if run in self._running:
                self._share[run] = step.share
                self._running[run] = self._running[run].stepped(step)

    def evaluated(self, run: str, metrics: Mapping[str, Any]) -> None:
        """See `Live`."""
        with self._lock:
            dataset, loss = self._config_of(run).dataset, metrics.get("adj_val_loss", math.inf)
            if dataset not in self._best or loss < self._best[dataset].adj_val_loss:
                self._best[dataset] = Best(run, loss)

    def retried(self, run: str, reason: str) -> None:
        """See `Live`."""
        with self._lock:
            self._running.pop(run, None)
            self._states.pop(run, None)

    def ended(self, run: str, status: str, reason: str) -> None:
        """See `Live`."""
        with self._lock:
            self._running.pop(run, None)
            self._states.pop(run, None)
            if status != SET_ASIDE:
                self._states[run] = INTERRUPTED if status == PAUSED else status
            if status == DONE:
                self._share[run] = 1.0

    def pausing(self, reason: str) -> None:
        """See `Live`."""
        with self._lock:
            self._pausing = reason

    def state(self) -> State:
        """How the sweep stands now."""
        with self._lock:
            states = list(self._states.values())
            counted = {state: states.count(state) for state in STATES} | {WAITING: self._total - len(states)}
            share, seconds_left = self._estimated()
            return State(
                sweep=self._sweep,
                total=self._total,
                counts={state: number for state, number in counted.items() if number > 0},
                running=tuple(self._running.values()),
                best=dict(self._best),
                share=share,
                seconds_left=seconds_left,
                pausing=self._pausing,
                told=time.time(),
            )

    def _estimated(self) -> tuple[float, float | None]:
        """Share of the sweep's work that is done; seconds that the rest takes at the rate of this launch so far."""
        shares = {run: 1.0 if self._states.get(run) in ENDED else self._share.get(run, 0.0) for run in self._work}
        known = math.fsum(self._work.values())
        unknown = (self._total - len(self._work)) * (known / len(self._work) if self._work else 1.0)
        left = math.fsum(work * (1 - shares[run]) for run, work in self._work.items()) + unknown
        done = math.fsum(
            work * (self._share.get(run, 0.0) - self._before.get(run, 0.0)) for run, work in self._work.items()
        )
        share = 1 - left / max(known + unknown, 1e-9)
        took = time.monotonic() - self._began if self._began else 0.0
        if took < SECONDS_TO_ESTIMATE or done <= 0:
            return share, None
        longest = max((one.step.seconds_left for one in self._running.values() if one.step), default=0.0)
        return share, max(left / done * took, longest)
