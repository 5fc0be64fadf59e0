"""Search: suggests a sweep's next trial, by Optuna through Ray Tune's `OptunaSearch`, or by another Tune searcher.

Outcomes are reported from rows in storage, in the order of the trials: the same rows give the same study.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results.measures import PER_WORD, Measure
from raylm.results.rows import DIVERGED, FAILED, STOPPED, Row
from raylm.results.storage import Storage
from raylm.results.sweep_record import Rules
from raylm.tuning.sampling.points import (
    OrderedChoices,
    build_trial,
    sample_random_points,
    split_space,
    suppress_warnings,
    to_distributions,
)

METRIC = "loss"
"""Objective: the lowest loss of the best epoch, by the measure of the search."""
DIVERGED_LOSS = math.inf
"""Loss reported for a diverged trial, or one whose loss does not compare: worse than any other, in any unit."""
OLD_DIVERGED_LOSS = 1e3
"""Loss of a diverged trial in searches that a version before measures began."""
MAX_SAMPLER_DUPLICATES = 20
"""Consecutive duplicates before drawing a random point."""
MAX_DUPLICATES = 40
"""Consecutive duplicates before the space counts as exhausted."""
NUM_RANDOM_TRIALS, OLD_NUM_RANDOM_TRIALS = 6, 10
"""Random trials before TPE suggests any, by the latest rules and by earlier ones."""
STUDY_FILE = "optuna/journal.log"
"""Optuna journal of the study, in a results folder."""


class Suggester:
    """Suggests trials one at a time, each once, given the outcomes of earlier ones."""

    def __init__(self, sweep: Sweep, measure: Measure = PER_WORD, *, rules: Rules = Rules.LATEST) -> None:
        """Create the suggester of a search.

        Args:
            measure: the loss to minimize.
            rules: rules of the search's first launch: trials are suggested as they were there.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._measure, self._is_old = measure, rules == Rules.BEFORE_MEASURES
        is_optuna = not isinstance(sweep.search, Searcher) or isinstance(sweep.search, OptunaSearch)
        self._is_bounded = not is_optuna and not self._is_old
        is_tpe = sweep.search == "optuna" or isinstance(sweep.search, TPESampler)
        self._prunes_diverged = is_tpe and not self._is_old and sweep.scheduler is not None
        self._fixed_fields, self._space = split_space(sweep.space)
        is_ordered = sweep.search == "optuna" and rules >= Rules.ONE_BEST
        self._choices = OrderedChoices(self._space if is_ordered else {})
        self._study: optuna.Study | None = None
        """Study of the searcher; None if it is not Optuna's."""
        with suppress_warnings():
            self._searcher = self._create_searcher(sweep, rules)
        self._searcher_ids: list[str] = []
        """Ids that the searcher knows the trials by, by index."""
        self._num_suggested = 0
        self._suggested_ids: set[str] = set()

    def _create_searcher(self, sweep: Sweep, rules: Rules) -> Searcher:
        """Return a fresh searcher over the space; set `_study` if it is Optuna's.

        Raises:
            UserError: if a searcher of the user has a space of its own.
        """
        if isinstance(sweep.search, Searcher):
            searcher = copy.deepcopy(sweep.search)  # a search changes its state
            if not searcher.set_search_properties(METRIC, "min", dict(self._space)):
                raise UserError(
                    "search: this searcher has a search space; expected one without, since the sweep's `space` is used"
                )
            return searcher
        storage = InMemoryStorage()
        searcher = OptunaSearch(
            self._choices.to_distributions(to_distributions(self._space)),
            metric=METRIC,
            mode="min",
            sampler=_build_sampler(sweep, rules),
            study_name=sweep.name,
            storage=storage,
        )
        self._study = optuna.load_study(study_name=sweep.name, storage=storage)
        for point in sweep.points_to_evaluate:
            searched = {name: value for name, value in point.items() if name not in self._fixed_fields}
            self._study.enqueue_trial(self._choices.encode(searched))
        return searcher

    def __call__(self, outcomes: Sequence[tuple[int, Row]]) -> TrialConfig | None:
        """Return the next trial, or None if only duplicates are suggested.

        Args:
            outcomes: (index, row) of finished trials that were not reported before.
        """
        self.report_outcomes(outcomes)
        with suppress_warnings():
            for repeats in range(MAX_DUPLICATES):
                if repeats == MAX_SAMPLER_DUPLICATES and not self._enqueue_random_point():
                    return None
                searcher_id, self._num_suggested = str(self._num_suggested), self._num_suggested + 1
                suggested = self._searcher.suggest(searcher_id)
                if suggested is None or suggested == Searcher.FINISHED:
                    return None
                trial = build_trial({**self._fixed_fields, **self._choices.decode(suggested)})
                if trial.id not in self._suggested_ids:
                    self._suggested_ids.add(trial.id)
                    self._searcher_ids.append(searcher_id)
                    return trial
                self._searcher.on_trial_complete(searcher_id, error=True)  # no outcome for the sampler
        return None

    def _enqueue_random_point(self) -> bool:
        """Enqueue a random new point as the next suggestion; return False if none is found or the searcher cannot."""
        if self._study is None:
            return False
        for fields, suggested in sample_random_points(self._fixed_fields, self._space, len(self._searcher_ids)):
            if build_trial(fields).id not in self._suggested_ids:
                self._study.enqueue_trial(self._choices.encode(suggested))
                return True
        return False

    def report_outcomes(self, outcomes: Sequence[tuple[int, Row]]) -> None:
        """Report the outcomes of trials to the searcher, in the order of their indices."""
        with suppress_warnings():
            for index, row in outcomes:
                self._report_outcome(self._searcher_ids[index], row)

    def _report_outcome(self, searcher_id: str, row: Row) -> None:
        """Report the loss of a trial; a failed trial has none.

        A diverged trial is reported as worse than every other one, and so is one whose loss does not compare.
        """
        config, metrics = row.config, row.metrics
        if row.status == DIVERGED or (row.status != FAILED and metrics and not self._measure.compares(config)):
            self._report_worst(searcher_id)
        elif row.status == FAILED or metrics is None:
            self._searcher.on_trial_complete(searcher_id, error=True)
        elif row.status == STOPPED:  # Optuna prunes it, and ranks it by its number of evaluations
            loss = self._to_objective(self._measure.compute(config, row.evaluations[-1]))
            self._searcher.on_trial_result(searcher_id, {METRIC: loss, "training_iteration": len(row.evaluations)})
            self._searcher.on_trial_complete(searcher_id)
        else:
            loss = self._to_objective(self._measure.compute(config, metrics))
            self._searcher.on_trial_complete(searcher_id, {METRIC: loss})

    def _report_worst(self, searcher_id: str) -> None:
        """Report a trial as worse than every other one, earlier or later."""
        if self._prunes_diverged:  # beside trials stopped early, which TPE ranks below complete ones, however bad
            self._searcher.on_trial_complete(searcher_id)
        else:
            loss = OLD_DIVERGED_LOSS if self._is_old else self._to_objective(DIVERGED_LOSS)
            self._searcher.on_trial_complete(searcher_id, {METRIC: loss})

    def _to_objective(self, loss: float) -> float:
        """Return a loss as it is reported to the searcher.

        Optuna's samplers rank infinity last. Searchers other than Optuna's may need finite numbers: they get one from
        0 to 1 that rises with the loss.
        """
        if not self._is_bounded:
            return loss
        return 1.0 if math.isinf(loss) else loss / (1 + loss)

    def write_study(self, storage: Storage) -> None:
        """Write the study for optuna-dashboard; no-op if the searcher is not Optuna's."""
        if self._study is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder, "journal.log")
            study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal))), study_name=self._study.study_name
            )
            study.add_trials([self._choices.decode_trial(trial) for trial in self._study.trials])
            storage.write(STUDY_FILE, journal.read_text(encoding="utf-8"))


def _build_sampler(sweep: Sweep, rules: Rules) -> BaseSampler:
    if isinstance(sweep.search, BaseSampler):
        return copy.deepcopy(sweep.search)  # a search changes its state
    if sweep.search == "random":
        return RandomSampler(seed=sweep.search_seed)
    return TPESampler(
        seed=sweep.search_seed,
        multivariate=True,
        group=True,
        constant_liar=True,
        n_startup_trials=NUM_RANDOM_TRIALS if rules >= Rules.ONE_BEST else OLD_NUM_RANDOM_TRIALS,
    )
