"""Simulated rows, and launches of a trial queue without Ray."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raylm.config.trial import TrialConfig
from raylm.results.measures import PER_WORD, Measure
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, STOPPED, Row, SavedCheckpoint
from raylm.tuning.trial_queue import QueueHistory, SuggestFn, TrialQueue

NUM_EVALUATIONS = 3
NUM_TOKENS = 300
"""Tokens of a trial, with an evaluation after each third."""


def build_row(
    trial: TrialConfig, status: str = DONE, losses: Sequence[float] = (), num_tokens: int = NUM_TOKENS
) -> Row:
    """Return the row of a trial with these adj val losses, one after each third of its tokens."""
    if not losses:
        return Row(trial, status, "", None, None)
    progress = Progress(NUM_EVALUATIONS, 1, step=len(losses))
    for n, loss in enumerate(losses, start=1):
        progress.evaluations.append(EvalMetrics(1, n, n * num_tokens // NUM_EVALUATIONS, loss, loss, loss))
    return Row(trial, status, "", SavedCheckpoint("nowhere", progress), None)


def simulate_losses(trial: TrialConfig) -> list[float]:
    """Return falling losses, the same in every run of a trial."""
    chance = zlib.crc32(trial.id.encode()) % 1000 / 1000
    return [4 - 2 * chance - n / 2 for n in range(NUM_EVALUATIONS)]


def simulate_status(trial: TrialConfig) -> str:
    """Return the final status of a trial that is not stopped: most are done."""
    return {0: FAILED, 1: DIVERGED}.get(zlib.crc32(trial.run_name.encode()) % 8, DONE)


@dataclass
class SimulatedStorage:
    """Rows of a sweep over all its launches, and what the queue reported and dispatched in the last one."""

    rows: dict[str, Row] = field(default_factory=dict)
    recorded_ids: list[str] = field(default_factory=list)
    """Ids of the trials suggested so far, as in sweep.json."""
    failed_ids: set[str] = field(default_factory=set)
    choose_status: Callable[[TrialConfig], str] = simulate_status
    stopped_ids: list[str] = field(default_factory=list)
    """Ids of trials whose early stop was recorded when the queue loaded them."""
    reported_outcomes: list[list[tuple[int, str, str, list[float]]]] = field(default_factory=list)
    """Outcomes reported with each suggestion: place, id, status, losses."""
    dispatched: list[TrialConfig] = field(default_factory=list)

    def load_row(self, trial: TrialConfig) -> Row:
        return self.rows.get(trial.id) or build_row(trial, PENDING)

    def record_stop(self, trial: TrialConfig, reason: str) -> None:
        self.stopped_ids.append(trial.id)
        self.rows[trial.id] = build_row(trial, STOPPED, [one.adj_val_loss for one in self.rows[trial.id].evaluations])

    def build_queue(
        self,
        suggest: SuggestFn,
        max_trials: int,
        delay: int | None,
        *,
        asha: bool = False,
        measure: Measure = PER_WORD,
        retry_failed: bool = False,
    ) -> TrialQueue:
        self.reported_outcomes, self.dispatched = [], []

        def recording_suggest(outcomes: Sequence[tuple[int, Row]]) -> TrialConfig | None:
            losses = [[one.adj_val_loss for one in row.evaluations] for _, row in outcomes]
            told = [(n, row.config.id, row.status) for n, row in outcomes]
            self.reported_outcomes.append([(*one, its) for one, its in zip(told, losses, strict=True)])
            return suggest(outcomes)

        return TrialQueue(
            recording_suggest,
            self,
            max_trials=max_trials,
            delay=delay,
            count_epoch_tokens=(lambda trial: NUM_TOKENS) if asha else None,
            measure=measure,
            retry_failed=retry_failed,
            history=QueueHistory(self.recorded_ids, self.failed_ids),
        )

    def finish_trial(self, queue: TrialQueue, trial: TrialConfig) -> None:
        """Run a trial to its end, or until the queue stops it."""
        status, losses = self.choose_status(trial), simulate_losses(trial)
        row = self.simulate_trial(queue, trial, NUM_EVALUATIONS if status == DONE else 1)
        stopped = len(row.evaluations) < NUM_EVALUATIONS and queue.find_stop_reason(trial, row)
        self.rows[trial.id] = build_row(trial, STOPPED if stopped else status, losses[: len(row.evaluations)])
        queue.mark_finished(self.rows[trial.id])

    def simulate_trial(self, queue: TrialQueue, trial: TrialConfig, num_evaluations: int) -> Row:
        """Return the row of a trial after a number of evaluations, or after the one at which the queue stops it."""
        rows = [build_row(trial, INTERRUPTED, simulate_losses(trial)[:n]) for n in range(num_evaluations + 1)]
        return next((row for row in rows if queue.find_stop_reason(trial, row)), rows[-1])

    def run_launch(
        self, queue: TrialQueue, *, seed: int = 0, max_concurrent: int = 3, max_finished: int | None = None
    ) -> None:
        """Run trials in a random order of ends, until all or `max_finished` have ended; then the machine crashes."""
        chance, running = random.Random(seed), list[TrialConfig]()
        while True:
            while len(running) < max_concurrent and (trial := queue.next_trial()):
                running.append(trial)
                self.dispatched.append(trial)
            self.recorded_ids = [one.id for one in queue.trials] + self.recorded_ids[len(queue.trials) :]
            self.failed_ids = set(queue.failed_ids)
            if not running or max_finished == 0:
                break
            self.finish_trial(queue, running.pop(chance.randrange(len(running))))
            max_finished = None if max_finished is None else max_finished - 1
        for trial in running:
            self.rows[trial.id] = self.simulate_trial(queue, trial, chance.randrange(NUM_EVALUATIONS))
