"""Rows as storage would have them, and launches of a line-up without Ray: what tests of the search share."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from raylm.config.trial import TrialConfig
from raylm.results.progress import Measured, Progress
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, MISSING, STOPPED, Row, SavedCheckpoint
from raylm.tuning.trial_queue import Lineup, Propose

EVALUATIONS = 3
TOKENS = 300
"""Of a trial, with an evaluation after each third."""


def row_of(trial: TrialConfig, status: str = DONE, losses: Sequence[float] = (), tokens: int = TOKENS) -> Row:
    """How a trial stands that had these adj val losses, one after each third of its tokens."""
    if not losses:
        return Row(trial, status, "", None, None)
    progress = Progress(EVALUATIONS, 1, step=len(losses))
    for n, loss in enumerate(losses, start=1):
        progress.evaluations.append(Measured(1, n, n * tokens // EVALUATIONS, loss, loss, loss))
    return Row(trial, status, "", SavedCheckpoint("nowhere", progress), None)


def losses_of(trial: TrialConfig) -> list[float]:
    """Falling, and the same ones whenever it runs."""
    chance = zlib.crc32(trial.id.encode()) % 1000 / 1000
    return [4 - 2 * chance - n / 2 for n in range(EVALUATIONS)]


def status_of(trial: TrialConfig) -> str:
    """How it ends if nobody stops it: most are done."""
    return {0: FAILED, 1: DIVERGED}.get(zlib.crc32(trial.run_name.encode()) % 8, DONE)


@dataclass
class Storage:
    """The rows of a sweep through all of its launches, and what was told and handed out in the last one."""

    rows: dict[str, Row] = field(default_factory=dict)
    recorded: list[str] = field(default_factory=list)
    """Ids of the trials proposed so far, as sweep.json has them."""
    failed: set[str] = field(default_factory=set)
    ending: Callable[[TrialConfig], str] = status_of
    stops: list[str] = field(default_factory=list)
    """Ids of trials whose early stop was noted when they were found in storage."""
    told: list[list[tuple[int, str, str, list[float]]]] = field(default_factory=list)
    """For each proposal the outcomes that it was told: place, id, status, losses."""
    handed: list[TrialConfig] = field(default_factory=list)

    def standing(self, trial: TrialConfig) -> Row:
        return self.rows.get(trial.id) or row_of(trial, MISSING)

    def note_stop(self, trial: TrialConfig, reason: str) -> None:
        self.stops.append(trial.id)
        self.rows[trial.id] = row_of(trial, STOPPED, [one.adj_val_loss for one in self.rows[trial.id].evaluations])

    def lineup(
        self, propose: Propose, total: int, lag: int | None, *, asha: bool = False, retry_failed: bool = False
    ) -> Lineup:
        self.told, self.handed = [], []

        def listening(outcomes: Sequence[tuple[int, Row]]) -> TrialConfig | None:
            losses = [[one.adj_val_loss for one in row.evaluations] for _, row in outcomes]
            told = [(n, row.config.id, row.status) for n, row in outcomes]
            self.told.append([(*one, its) for one, its in zip(told, losses, strict=True)])
            return propose(outcomes)

        return Lineup(
            listening,
            total=total,
            lag=lag,
            standing=self.standing,
            note_stop=self.note_stop,
            epoch_tokens=(lambda trial: TOKENS) if asha else None,
            retry_failed=retry_failed,
            recorded=self.recorded,
            failed=self.failed,
        )

    def end(self, lineup: Lineup, trial: TrialConfig) -> None:
        """Runs a trial to its end, or until the line-up stops it."""
        status, losses = self.ending(trial), losses_of(trial)
        row = self.run(lineup, trial, EVALUATIONS if status == DONE else 1)
        stopped = len(row.evaluations) < EVALUATIONS and lineup.is_beyond_limit(trial, row)
        self.rows[trial.id] = row_of(trial, STOPPED if stopped else status, losses[: len(row.evaluations)])
        lineup.ended(trial)

    def run(self, lineup: Lineup, trial: TrialConfig, evaluations: int) -> Row:
        """How a trial stands after so many evaluations, or after that which ends it."""
        rows = [row_of(trial, INTERRUPTED, losses_of(trial)[:n]) for n in range(evaluations + 1)]
        return next((row for row in rows if lineup.is_beyond_limit(trial, row)), rows[-1])

    def launch(self, lineup: Lineup, *, order: int = 0, slots: int = 3, ends: int | None = None) -> None:
        """Runs trials, some at a time, which end in an order of chance; after so many ends the machine goes down."""
        chance, running = random.Random(order), list[TrialConfig]()
        while True:
            while len(running) < slots and (trial := lineup.next()):
                running.append(trial)
                self.handed.append(trial)
            self.recorded = [one.id for one in lineup.trials] + self.recorded[len(lineup.trials) :]
            self.failed = set(lineup.failed)
            if not running or ends == 0:
                break
            self.end(lineup, running.pop(chance.randrange(len(running))))
            ends = None if ends is None else ends - 1
        for trial in running:
            self.rows[trial.id] = self.run(lineup, trial, chance.randrange(EVALUATIONS))
