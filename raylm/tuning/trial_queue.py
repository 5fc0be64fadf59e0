"""The order of a sweep's trials, and which of them wait for the results of which. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results.rows import FAILED, STOPPED, Row
from raylm.tuning import asha

Propose = Callable[[Sequence[tuple[int, Row]]], TrialConfig | None]
"""Told outcomes with the places of their trials, it names the next trial, one that it has not named before, or none."""


class Lineup:
    """Hands out the trials of a sweep that are to be run, in the order in which they are proposed.

    Whatever follows from results, a suggestion or a limit, follows for the n-th trial from those of the trials 0 to
    n - lag, and from no others: it waits until they have ended, and does not look at those that have ended beyond. So
    trials, suggestions and early stops are a function of the sweep alone; proposing them again from the results in
    storage gives the same.
    """

    def __init__(
        self,
        propose: Propose,
        *,
        total: int,
        lag: int | None,
        standing: Callable[[TrialConfig], Row],
        note_stop: Callable[[TrialConfig, str], None] = lambda trial, reason: None,
        epoch_tokens: Callable[[TrialConfig], int] | None = None,
        retry_failed: bool = False,
        recorded: Sequence[str] = (),
        failed: Iterable[str] = (),
    ) -> None:
        """A line-up of at most `total` trials.

        Args:
            lag: a trial follows from the results of those that are so many places and more before it; None: no trial
                follows from any result, so that none waits.
            standing: how a trial stands in storage.
            note_stop: told of a trial that stands there beyond its limit, and why it is stopped.
            epoch_tokens: what a trial trains on in an epoch; with it, bad trials are stopped early.
            retry_failed: hand out failed trials again.
            recorded: ids of the trials that were proposed in earlier launches, in their order.
            failed: ids of those whose outcome was told as a failure.
        """
        self.trials: list[TrialConfig] = []
        """Proposed so far, by their places."""
        self.failed = set(failed)
        """Ids of trials whose outcome was told as a failure: it stays one, should they succeed in a later launch."""
        self.exhausted = False
        """Whether there are no more different trials to propose."""
        self.total = total
        """Trials that there are at most."""
        self.lag = lag
        """See above."""
        self._propose, self._standing = propose, standing
        self._note_stop, self._epoch_tokens, self._retry_failed = note_stop, epoch_tokens, retry_failed
        self._recorded = list(recorded)
        self._ended: dict[str, Row] = {}
        self._told = 0
        self._limits: dict[str, Mapping[int, float]] = {}
        self._ready: TrialConfig | None = None

    @property
    def finished(self) -> bool:
        """Whether all trials have been handed out."""
        return self._ready is None and (self.exhausted or len(self.trials) >= self.total)

    @property
    def complete(self) -> bool:
        """Whether all trials have ended."""
        return self.finished and self._all_ended(len(self.trials))

    def next(self) -> TrialConfig | None:
        """The next trial to run; None where there is none, or none before another has ended.

        Raises:
            UserError: if a trial is not the one that stood in its place in an earlier launch.
        """
        trial, self._ready = self._ready or self._advance(), None
        return trial

    def look_ahead(self) -> None:
        """Goes through what has ended in earlier launches, up to the first trial to run."""
        self._ready = self._ready or self._advance()

    def untold(self) -> list[tuple[int, Row]]:
        """Outcomes that no proposal has been told, because it came before or was none of its business."""
        places = range(self._told, len(self.trials))
        return [(place, self._outcome(place)) for place in places if self.trials[place].id in self._ended]

    def ended(self, trial: TrialConfig) -> None:
        """Takes notice that a trial has ended, however."""
        self._ended[trial.id] = self._standing(trial)

    def is_beyond_limit(self, trial: TrialConfig, row: Row) -> str:
        """Why a trial that stands like this is to be stopped, in a line; nothing where it goes on."""
        measured = asha.stopped_at(row.evaluations, self._limits.get(trial.id, {}))
        if measured is None:
            return ""
        loss, tokens = f"{measured.adj_val_loss:.3f}", f"{measured.tokens_seen:,}"
        return f"its adj val loss after {tokens} tokens, {loss}, is not among the best third"

    def _advance(self) -> TrialConfig | None:
        while len(self.trials) < self.total and not self.exhausted:
            known = len(self.trials) if self.lag is None else max(len(self.trials) - self.lag + 1, 0)
            if self.lag is not None and not self._all_ended(known):
                return None
            outcomes = [] if self.lag is None else [(n, self._outcome(n)) for n in range(known)]
            self.failed |= {row.config.id for _, row in outcomes if row.status == FAILED}
            trial = self._propose(outcomes[self._told :])
            self._told = max(known, self._told)
            if trial is None:
                self.exhausted = True
                return None
            self._add(trial, [row for _, row in outcomes])
            if self._to_run(trial):
                return trial
        return None

    def _all_ended(self, places: int) -> bool:
        return all(trial.id in self._ended for trial in self.trials[:places])

    def _outcome(self, place: int) -> Row:
        """How a trial ended, as far as the line-up is concerned."""
        row = self._ended[self.trials[place].id]
        if row.status == FAILED or row.config.id in self.failed:
            return replace(row, status=FAILED)
        beyond = asha.stopped_at(row.evaluations, self._limits.get(row.config.id, {}))
        return row.cut_off(beyond) if beyond else row  # it went on if its machine died while it was being judged

    def _add(self, trial: TrialConfig, before: Sequence[Row]) -> None:
        place = len(self.trials)
        if place < len(self._recorded) and self._recorded[place] != trial.id:
            raise UserError(
                f"trial {place + 1} of this search was {self._recorded[place]} in an earlier launch, and would be "
                f"{trial.id} ({trial.run_name}) now: its space, seed, sampler or a version has changed since; "
                "give the sweep another name, or choose another place with --storage"
            )
        self.trials.append(trial)
        if self._epoch_tokens is not None:
            self._limits[trial.id] = asha.limits(trial, before, self._epoch_tokens(trial))

    def _to_run(self, trial: TrialConfig) -> bool:
        """Whether a trial is still to be run; where it is not, its end is noted."""
        row = self._standing(trial)
        if not row.ended and (reason := self.is_beyond_limit(trial, row)):  # it died before its end was written down
            self._note_stop(trial, reason)
            row = replace(row, status=STOPPED)
        if not row.ended or (self._retry_failed and row.status == FAILED):
            return True
        self._ended[trial.id] = row
        return False
