"""A search: which trial comes next, by Optuna through Ray Tune's OptunaSearch, or by another searcher of Ray.

Everything that it is told comes from rows in storage, in the order of the trials. The same rows give the same study.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raylm.config import search_space
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import SweepError, UserError, safe_repr, unknown_name_problem
from raylm.results.rows import DIVERGED, FAILED, STOPPED, Row
from raylm.results.storage import Storage

os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # read at import; the display is ours

METRIC = "adj_val_loss"
"""What is searched for: the lowest adj val loss of the best epoch, which compares between tokenizers."""
DIVERGED_LOSS = 1e3
"""Nats per word that a diverged trial is told with: worse than any other, and finite, which samplers need."""
MAX_SAMPLER_DUPLICATES = 20
"""Suggestions in a row that name a trial of before, until a random point is taken, and so many more: until the end."""
MAX_DUPLICATES = 40
NUM_RANDOM_POINTS = 1000
"""Random points among which a new one is looked for, and by which a define-by-run function is tried beforehand."""


class Suggester:
    """Names one trial after the other, each of them once, having been told how earlier ones came out."""

    def __init__(self, sweep: Sweep) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._fixed_fields, self._space = _split_space(sweep.space)
        self._study: optuna.Study | None = None
        """Where the searcher is Optuna."""
        with _suppress_warnings():
            self._searcher = self._create_searcher(sweep)
        self._searcher_ids: list[str] = []
        """The searcher's names of the trials, by their places."""
        self._num_suggested = 0
        self._suggested_ids: set[str] = set()

    def _create_searcher(self, sweep: Sweep) -> Searcher:
        if isinstance(sweep.search, Searcher):
            searcher = copy.deepcopy(sweep.search)  # it is used up by one search
            if not searcher.set_search_properties(METRIC, "min", dict(self._space)):
                raise UserError("search: this searcher has a space of its own; expected one without: `space` names it")
            return searcher
        storage = InMemoryStorage()
        searcher = OptunaSearch(
            _to_distributions(self._space),
            metric=METRIC,
            mode="min",
            sampler=_build_sampler(sweep),
            study_name=sweep.name,
            storage=storage,
        )
        self._study = optuna.load_study(study_name=sweep.name, storage=storage)
        for point in sweep.points_to_evaluate:
            self._study.enqueue_trial({name: value for name, value in point.items() if name not in self._fixed_fields})
        return searcher

    def __call__(self, outcomes: Sequence[tuple[int, Row]]) -> TrialConfig | None:
        """The next trial; None where nothing but repetitions is suggested.

        Args:
            outcomes: places of earlier trials, and how they ended: those that have not been told before.
        """
        self.report_outcomes(outcomes)
        with _suppress_warnings():
            for repeats in range(MAX_DUPLICATES):
                if repeats == MAX_SAMPLER_DUPLICATES and not self._enqueue_random_point():
                    return None
                searcher_id, self._num_suggested = str(self._num_suggested), self._num_suggested + 1
                suggested = self._searcher.suggest(searcher_id)
                if suggested is None or suggested == Searcher.FINISHED:
                    return None
                trial = _build_trial({**self._fixed_fields, **suggested})
                if trial.id not in self._suggested_ids:
                    self._suggested_ids.add(trial.id)
                    self._searcher_ids.append(searcher_id)
                    return trial
                self._searcher.on_trial_complete(searcher_id, error=True)  # it tells the sampler nothing
        return None

    def _enqueue_random_point(self) -> bool:
        """Has a random point that was never suggested be the next suggestion, if one is found and can be named."""
        if self._study is None:
            return False
        for fields, suggested in _sample_random_points(self._fixed_fields, self._space, len(self._searcher_ids)):
            if _build_trial(fields).id not in self._suggested_ids:
                self._study.enqueue_trial(suggested)
                return True
        return False

    def report_outcomes(self, outcomes: Sequence[tuple[int, Row]]) -> None:
        """Tells the searcher how trials ended, in the order of their places."""
        with _suppress_warnings():
            for place, row in outcomes:
                self._report_outcome(self._searcher_ids[place], row)

    def _report_outcome(self, searcher_id: str, row: Row) -> None:
        measured = row.metrics
        if row.status == DIVERGED:
            self._searcher.on_trial_complete(searcher_id, {METRIC: DIVERGED_LOSS})
        elif row.status == FAILED or measured is None:
            self._searcher.on_trial_complete(searcher_id, error=True)
        elif row.status == STOPPED:  # Optuna calls it pruned, and ranks it by how far it came
            self._searcher.on_trial_result(
                searcher_id, {METRIC: row.evaluations[-1].adj_val_loss, "training_iteration": len(row.evaluations)}
            )
            self._searcher.on_trial_complete(searcher_id)
        else:
            self._searcher.on_trial_complete(searcher_id, {METRIC: measured.adj_val_loss})

    def write_study(self, storage: Storage) -> None:
        """Writes the study as it is, for optuna-dashboard; nothing where another searcher keeps none."""
        if self._study is None:
            return
        with tempfile.TemporaryDirectory() as beside:
            journal = Path(beside, "journal.log")
            written = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal))), study_name=self._study.study_name
            )
            written.add_trials(self._study.trials)
            storage.write(STUDY_FILE, journal.read_text(encoding="utf-8"))


STUDY_FILE = "optuna/journal.log"
"""In a results folder."""


def representative_trials(sweep: Sweep) -> list[TrialConfig]:
    """Trials that stand for all that a search may need: each model, dataset and longest context it may name.

    Raises:
        SweepError: if a define-by-run function gives trials that cannot be.
    """
    fixed, space = _split_space(sweep.space)
    if callable(space):
        return list({_input_requirements(trial): trial for trial in _sample_function_trials(sweep, space)}.values())
    combined: list[dict[str, Any]] = [dict(fixed)]
    for name, domain in space.items():
        found = search_space.list_values(domain)
        if name in ("dataset", "model", "pretrained"):
            combined = [{**one, name: value} for one in combined for value in found]
        else:
            numbers = [value for value in found if value is not None]
            hardest = max(found) if name == "context_length" else found[0]
            hardest = min(numbers, default=None) if name == "max_train_tokens" else hardest
            combined = [{**one, name: hardest} for one in combined]
    return [TrialConfig(**one) for one in combined]


def _sample_function_trials(sweep: Sweep, space_function: Any) -> Iterator[TrialConfig]:
    """Trials of random points of a define-by-run function."""
    with _suppress_warnings():
        for fields, _ in _sample_random_points({}, space_function, 0):
            try:
                yield _build_trial(fields)
            except SweepError as error:
                raise SweepError([p.nested_in("space(...)") for p in error.problems], sweep.name) from None


def _build_trial(fields: Mapping[str, Any]) -> TrialConfig:
    """The trial of these fields.

    Raises:
        SweepError: if they do not make one, which a define-by-run function alone can bring about.
    """
    known = [field.name for field in dataclasses.fields(TrialConfig)]
    if problems := [unknown_name_problem(name, known) for name in fields if name not in known]:
        raise SweepError(problems)
    return TrialConfig(**fields)


def _sample_random_points(
    fixed_fields: Mapping[str, Any], space: Any, seed: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Fields of trials at random, and that part of them which is suggested."""
    study = optuna.create_study(storage=InMemoryStorage(), sampler=RandomSampler(seed=seed))
    distributions = _to_distributions(space)
    for _ in range(NUM_RANDOM_POINTS):
        if not callable(space):
            suggested = study.ask(distributions).params
            yield {**fixed_fields, **suggested}, suggested
            continue
        trial = study.ask()
        try:
            returned = space(trial) or {}
        except Exception as error:  # the user's own function
            raise UserError(f"space: the function raises {type(error).__name__}: {error}") from error
        if not isinstance(returned, dict):
            raise UserError(f"space: the function returns {safe_repr(returned)}; expected a dict of fields, or None")
        yield {**trial.params, **returned}, trial.params


def _to_distributions(space: Any) -> Any:
    """A space as Optuna's distributions; a function as it is."""
    return space if callable(space) else OptunaSearch.convert_search_space(dict(space))


def _input_requirements(trial: TrialConfig) -> tuple[Any, ...]:
    return trial.dataset, trial.model, trial.pretrained, trial.context_length, trial.max_train_tokens


def _build_sampler(sweep: Sweep) -> BaseSampler:
    if isinstance(sweep.search, BaseSampler):
        return copy.deepcopy(sweep.search)  # its state is used up by one search
    if sweep.search == "random":
        return RandomSampler(seed=sweep.search_seed)
    return TPESampler(seed=sweep.search_seed, multivariate=True, group=True, constant_liar=True)


def _split_space(space: Any) -> tuple[dict[str, Any], Any]:
    """The fields that have one value, and the distributions; a function has none of the former."""
    if callable(space):
        return {}, space
    fixed = {name: value for name, value in space.items() if not search_space.is_distribution(value)}
    searched: Mapping[str, Any] = {name: value for name, value in space.items() if name not in fixed}
    return fixed, searched


@contextmanager
def _suppress_warnings() -> Iterator[None]:
    """Optuna warns of what is experimental in it; nobody here can act on that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
