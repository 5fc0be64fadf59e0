"""Queue of a sweep's trials: their order, and which of them wait for the results of others. No torch, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results.folder import load_row, write_final_status
from raylm.results.measures import PER_WORD, Measure
from raylm.results.progress import EvalMetrics
from raylm.results.rows import FAILED, STOPPED, Row
from raylm.results.storage import Storage
from raylm.tuning import asha

SuggestFn = Callable[[Sequence[tuple[int, Row]]], TrialConfig | None]
"""Returns the next trial, given the outcomes of earlier ones by index that were not reported before, or None if the
space is exhausted. It never returns a trial twice."""


class TrialRows(Protocol):
    """Source of trials' rows, and the place where early stops are recorded."""

    def load_row(self, trial: TrialConfig) -> Row:
        """Return the row of a trial as it is in storage."""

    def record_stop(self, trial: TrialConfig, reason: str) -> None:
        """Record that a trial was stopped early."""


class StoredRows:
    """Rows in a results folder."""

    def __init__(self, storage: Storage, launches: Sequence[str], loaded_rows: Iterable[Row] = ()) -> None:
        """Create the source.

        Args:
            launches: names of the launches' folders, the present one last.
            loaded_rows: rows that were just loaded; each is used once instead of loading it again.
        """
        self._storage, self._launches = storage, launches
        self._loaded = {row.config.id: row for row in loaded_rows}

    def load_row(self, trial: TrialConfig) -> Row:
        """Return the row of a trial."""
        return self._loaded.pop(trial.id, None) or load_row(self._storage, trial, self._launches)

    def record_stop(self, trial: TrialConfig, reason: str) -> None:
        """Write the stop into the folder of the present launch."""
        write_final_status(self._storage, self._launches[-1], trial, STOPPED, reason)


@dataclass(frozen=True)
class QueueHistory:
    """Trials of earlier launches that the queue must reproduce."""

    suggested_ids: Sequence[str] = ()
    """Ids of the trials suggested in earlier launches, in order."""
    failed_ids: Iterable[str] = ()
    """Ids of trials whose outcome was reported as a failure."""


class TrialQueue:
    """Queue of a sweep's unfinished trials, in the order in which they are suggested.

    What depends on results, a suggestion or a limit of ASHA, depends for the n-th trial on those of trials 0 to
    n - delay only: it waits until these have ended, and ignores later ones that have. Trials, suggestions and early
    stops are therefore a function of the sweep alone, and a resumed sweep reproduces them from the results in storage.
    """

    def __init__(
        self,
        suggest: SuggestFn,
        rows: TrialRows,
        *,
        max_trials: int,
        delay: int | None,
        count_epoch_tokens: Callable[[TrialConfig], int] | None = None,
        measure: Measure = PER_WORD,
        any_context: bool = False,
        retry_failed: bool = False,
        history: QueueHistory | None = None,
    ) -> None:
        """Create a queue of at most `max_trials` trials.

        Args:
            delay: number of places between a trial and the last one whose result it depends on; None: no trial depends
                on results, and none waits.
            count_epoch_tokens: returns the training tokens of a trial's epoch; enables early stopping by ASHA.
            measure: the loss that ASHA compares.
            any_context: whether ASHA compares trials of different context lengths.
            retry_failed: run failed trials again.
        """
        history = history or QueueHistory()
        self.trials: list[TrialConfig] = []
        """Trials suggested so far, by index."""
        self.failed_ids = set(history.failed_ids)
        """Ids of trials whose outcome was reported as a failure: it remains one if they succeed in a later launch."""
        self.exhausted = False
        """True if there are no more new trials to suggest."""
        self.max_trials = max_trials
        """Maximum number of trials."""
        self.delay = delay
        """Delay, as given to the constructor."""
        self._suggest, self._rows = suggest, rows
        self.measure = measure
        """Measure of the losses that ASHA compares."""
        self._count_epoch_tokens, self._any_context, self._retry_failed = count_epoch_tokens, any_context, retry_failed
        self._recorded_ids = list(history.suggested_ids)
        self._finished_rows: dict[str, Row] = {}
        self._outcomes: list[Row] = []
        self._num_reported = 0
        self._limits: dict[str, Mapping[int, float]] = {}
        self._next_trial: TrialConfig | None = None

    @property
    def all_dispatched(self) -> bool:
        """True if all trials have been dispatched."""
        return self._next_trial is None and (self.exhausted or len(self.trials) >= self.max_trials)

    @property
    def all_finished(self) -> bool:
        """True if all trials have been dispatched and have ended."""
        return self.all_dispatched and all(trial.id in self._finished_rows for trial in self.trials)

    def next_trial(self) -> TrialConfig | None:
        """Return the next trial to run, or None if there is none, or none before another trial ends.

        Raises:
            UserError: if a trial differs from the one with its index in an earlier launch.
        """
        trial, self._next_trial = self._next_trial or self._advance(), None
        return trial

    def skip_finished(self) -> None:
        """Advance past trials that ended in earlier launches, to the first one to run."""
        self._next_trial = self._next_trial or self._advance()

    def unreported(self) -> list[tuple[int, Row]]:
        """Return the outcomes not yet reported to the searcher, by index."""
        indices = range(self._num_reported, len(self.trials))
        return [(index, self._get_outcome(index)) for index in indices if self.trials[index].id in self._finished_rows]

    def mark_finished(self, row: Row) -> None:
        """Mark a trial as ended, with the status of its row."""
        self._finished_rows[row.config.id] = row

    def find_stop_reason(self, trial: TrialConfig, row: Row) -> str:
        """Return the reason for stopping a trial early, one line, or an empty string if it continues.

        Args:
            row: the trial's current row.
        """
        evaluation = self._find_stop_evaluation(trial, row)
        if evaluation is None:
            return ""
        measure, tokens = self.measure, f"{evaluation.tokens_seen:,}"
        loss = measure.format(measure.compute(trial, evaluation))
        return f"its {measure.name} after {tokens} tokens, {loss}, is not among the best third"

    def _find_stop_evaluation(self, trial: TrialConfig, row: Row) -> EvalMetrics | None:
        limits = self._limits.get(trial.id, {})
        return asha.find_stop_evaluation(row.evaluations, limits, partial(self.measure.compute, trial))

    def _advance(self) -> TrialConfig | None:
        """Append suggested trials until one has to run; return it, or None if there is none or results are awaited."""
        while len(self.trials) < self.max_trials and not self.exhausted:
            if self.delay is not None and not self._collect_outcomes(len(self.trials) - self.delay + 1):
                return None
            unreported = range(self._num_reported, len(self._outcomes))
            trial = self._suggest([(index, self._outcomes[index]) for index in unreported])
            self._num_reported = len(self._outcomes)
            if trial is None:
                self.exhausted = True
                return None
            self._append(trial)
            if self._needs_run(trial):
                return trial
        return None

    def _collect_outcomes(self, num_trials: int) -> bool:
        """Collect the outcomes of the first trials; return False if one of them has not ended."""
        for index in range(len(self._outcomes), num_trials):
            if self.trials[index].id not in self._finished_rows:
                return False
            self._outcomes.append(self._get_outcome(index))
            self.failed_ids |= {row.config.id for row in self._outcomes[-1:] if row.status == FAILED}
        return True

    def _get_outcome(self, index: int) -> Row:
        """Return a finished trial's row as it is reported to the searcher and compared with others."""
        row = self._finished_rows[self.trials[index].id]
        if row.status == FAILED or row.config.id in self.failed_ids:
            return replace(row, status=FAILED)
        last = self._find_stop_evaluation(row.config, row)
        return row.truncate(last) if last else row  # it trained longer if its machine died before it was stopped

    def _append(self, trial: TrialConfig) -> None:
        index = len(self.trials)
        if index < len(self._recorded_ids) and self._recorded_ids[index] != trial.id:
            raise UserError(
                f"trial {index + 1} of this search was {self._recorded_ids[index]} in an earlier launch, but is now "
                f"{trial.id} ({trial.run_name}): the space, seed, sampler or a library version has changed since; "
                "give the sweep another name, or use another --storage"
            )
        self.trials.append(trial)
        if self._count_epoch_tokens is not None:
            epoch_tokens = self._count_epoch_tokens(trial)
            self._limits[trial.id] = asha.compute_loss_limits(
                trial, self._outcomes, epoch_tokens, self.measure, any_context=self._any_context
            )

    def _needs_run(self, trial: TrialConfig) -> bool:
        """Return whether a trial has to run; mark it as ended if it does not."""
        row = self._rows.load_row(trial)
        reason = "" if row.is_finished else self.find_stop_reason(trial, row)
        if reason:  # its machine died before the stop was recorded
            self._rows.record_stop(trial, reason)
            row = replace(row, status=STOPPED)
        if not row.is_finished or (self._retry_failed and row.status == FAILED):
            return True
        self._finished_rows[trial.id] = row
        return False
