"""The order of a sweep's trials, and which of them wait for the results of which. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results.rows import FAILED, STOPPED, Row
from raylm.tuning import asha

SuggestFn = Callable[[Sequence[tuple[int, Row]]], TrialConfig | None]
"""Told outcomes with the places of their trials, it names the next trial, one that it has not named before, or none."""


class TrialQueue:
    """Hands out the trials of a sweep that are to be run, in the order in which they are proposed.

    Whatever follows from results, a suggestion or a limit, follows for the n-th trial from those of the trials 0 to
    n - lag, and from no others: it waits until they have ended, and does not look at those that have ended beyond. So
    trials, suggestions and early stops are a function of the sweep alone; proposing them again from the results in
    storage gives the same.
    """

    def __init__(
        self,
        suggest: SuggestFn,
        *,
        max_trials: int,
        delay: int | None,
        load_row: Callable[[TrialConfig], Row],
        record_stop: Callable[[TrialConfig, str], None] = lambda trial, reason: None,
        count_epoch_tokens: Callable[[TrialConfig], int] | None = None,
        retry_failed: bool = False,
        recorded_ids: Sequence[str] = (),
        failed_ids: Iterable[str] = (),
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
        self.failed_ids = set(failed_ids)
        """Ids of trials whose outcome was told as a failure: it stays one, should they succeed in a later launch."""
        self.exhausted = False
        """Whether there are no more different trials to propose."""
        self.max_trials = max_trials
        """Trials that there are at most."""
        self.delay = delay
        """See above."""
        self._suggest, self._load_row = suggest, load_row
        self._record_stop, self._count_epoch_tokens, self._retry_failed = record_stop, count_epoch_tokens, retry_failed
        self._recorded_ids = list(recorded_ids)
        self._finished_rows: dict[str, Row] = {}
        self._num_reported = 0
        self._limits: dict[str, Mapping[int, float]] = {}
        self._next_trial: TrialConfig | None = None

    @property
    def all_dispatched(self) -> bool:
        """Whether all trials have been handed out."""
        return self._next_trial is None and (self.exhausted or len(self.trials) >= self.max_trials)

    @property
    def all_finished(self) -> bool:
        """Whether all trials have ended."""
        return self.all_dispatched and self._are_finished(len(self.trials))

    def next_trial(self) -> TrialConfig | None:
        """The next trial to run; None where there is none, or none before another has ended.

        Raises:
            UserError: if a trial is not the one that stood in its place in an earlier launch.
        """
        trial, self._next_trial = self._next_trial or self._advance(), None
        return trial

    def skip_finished(self) -> None:
        """Goes through what has ended in earlier launches, up to the first trial to run."""
        self._next_trial = self._next_trial or self._advance()

    def unreported(self) -> list[tuple[int, Row]]:
        """Outcomes that no proposal has been told, because it came before or was none of its business."""
        places = range(self._num_reported, len(self.trials))
        return [(place, self._get_outcome(place)) for place in places if self.trials[place].id in self._finished_rows]

    def mark_finished(self, trial: TrialConfig) -> None:
        """Takes notice that a trial has ended, however."""
        self._finished_rows[trial.id] = self._load_row(trial)

    def find_stop_reason(self, trial: TrialConfig, row: Row) -> str:
        """Why a trial that stands like this is to be stopped, in a line; nothing where it goes on."""
        measured = asha.find_stop_evaluation(row.evaluations, self._limits.get(trial.id, {}))
        if measured is None:
            return ""
        loss, tokens = f"{measured.adj_val_loss:.3f}", f"{measured.tokens_seen:,}"
        return f"its adj val loss after {tokens} tokens, {loss}, is not among the best third"

    def _advance(self) -> TrialConfig | None:
        while len(self.trials) < self.max_trials and not self.exhausted:
            known = len(self.trials) if self.delay is None else max(len(self.trials) - self.delay + 1, 0)
            if self.delay is not None and not self._are_finished(known):
                return None
            outcomes = [] if self.delay is None else [(n, self._get_outcome(n)) for n in range(known)]
            self.failed_ids |= {row.config.id for _, row in outcomes if row.status == FAILED}
            trial = self._suggest(outcomes[self._num_reported :])
            self._num_reported = max(known, self._num_reported)
            if trial is None:
                self.exhausted = True
                return None
            self._append(trial, [row for _, row in outcomes])
            if self._needs_run(trial):
                return trial
        return None

    def _are_finished(self, num_trials: int) -> bool:
        return all(trial.id in self._finished_rows for trial in self.trials[:num_trials])

    def _get_outcome(self, index: int) -> Row:
        """How a trial ended, as far as the line-up is concerned."""
        row = self._finished_rows[self.trials[index].id]
        if row.status == FAILED or row.config.id in self.failed_ids:
            return replace(row, status=FAILED)
        beyond = asha.find_stop_evaluation(row.evaluations, self._limits.get(row.config.id, {}))
        return row.truncate(beyond) if beyond else row  # it went on if its machine died while it was being judged

    def _append(self, trial: TrialConfig, earlier_rows: Sequence[Row]) -> None:
        place = len(self.trials)
        if place < len(self._recorded_ids) and self._recorded_ids[place] != trial.id:
            raise UserError(
                f"trial {place + 1} of this search was {self._recorded_ids[place]} in an earlier launch, and would be "
                f"{trial.id} ({trial.run_name}) now: its space, seed, sampler or a version has changed since; "
                "give the sweep another name, or choose another place with --storage"
            )
        self.trials.append(trial)
        if self._count_epoch_tokens is not None:
            self._limits[trial.id] = asha.compute_loss_limits(trial, earlier_rows, self._count_epoch_tokens(trial))

    def _needs_run(self, trial: TrialConfig) -> bool:
        """Whether a trial is still to be run; where it is not, its end is noted."""
        row = self._load_row(trial)
        if not row.is_finished and (
            reason := self.find_stop_reason(trial, row)
        ):  # it died before its end was written down
            self._record_stop(trial, reason)
            row = replace(row, status=STOPPED)
        if not row.is_finished or (self._retry_failed and row.status == FAILED):
            return True
        self._finished_rows[trial.id] = row
        return False
