"""Points of a search space: their trials, random ones, and numeric choices as an ordered dimension of Optuna's."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial
from ray.tune.search.optuna import OptunaSearch

from raylm.config import search_space
from raylm.config.other_names import unknown_field
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import SweepError, UserError, safe_repr

NUM_RANDOM_POINTS = 1000
"""Random points drawn to find a new trial, and to try a define-by-run function before a launch."""
MIN_ORDERED_CHOICES = 3
"""Least number of values that have an order worth knowing."""
UNORDERED_FIELDS = ("seed",)
"""Fields whose numbers are names."""


class OrderedChoices:
    """Numeric choices of a space, by field, that Optuna's sampler sees as their places in ascending order.

    For `tune.choice([1e-4, 1e-3, 1e-2])` a sampler would not know that 1e-3 lies between the others.
    """

    def __init__(self, space: Any) -> None:
        """Find the numeric choices of a space; a define-by-run function has none."""
        fields: Mapping[str, Any] = {} if callable(space) else space
        self._values = {name: values for name, value in fields.items() if (values := _list_ordered(name, value))}

    def to_distributions(self, distributions: Any) -> Any:
        """Return Optuna's distributions of the space with places for numeric choices."""
        if not self._values:
            return distributions
        places = {name: IntDistribution(0, len(values) - 1) for name, values in self._values.items()}
        return {name: places.get(name, distribution) for name, distribution in distributions.items()}

    def encode(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return a point with places for the values of numeric choices."""
        return {n: self._values[n].index(value) if n in self._values else value for n, value in point.items()}

    def decode(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return a point with the values of numeric choices for their places."""
        return {n: self._values[n][place] if n in self._values else place for n, place in point.items()}

    def decode_trial(self, trial: FrozenTrial) -> FrozenTrial:
        """Return a trial of a study with values for places, as a trial of a study of the space itself."""
        known: Mapping[str, BaseDistribution] = {n: CategoricalDistribution(v) for n, v in self._values.items()}
        decoded = optuna.trial.create_trial(
            state=trial.state,
            value=trial.value,
            params=self.decode(trial.params),
            distributions={n: known.get(n, distribution) for n, distribution in trial.distributions.items()},
            user_attrs=trial.user_attrs,
            system_attrs=trial.system_attrs,
            intermediate_values=trial.intermediate_values,
        )
        decoded.datetime_start, decoded.datetime_complete = trial.datetime_start, trial.datetime_complete
        return decoded


def _list_ordered(name: str, value: Any) -> list[Any]:
    """Return the values of a numeric choice in ascending order, each once; an empty list for anything else."""
    values = search_space.list_values(value) if search_space.is_choice(value) else []
    if name in UNORDERED_FIELDS or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
        return []
    return ordered if len(ordered := sorted(set(values))) >= MIN_ORDERED_CHOICES else []


def representative_trials(sweep: Sweep) -> list[TrialConfig]:
    """Return trials with all inputs that a search may need: each model and dataset, with the longest context.

    Raises:
        SweepError: if a define-by-run function returns invalid trials.
    """
    fixed, space = split_space(sweep.space)
    if callable(space):
        return list({_input_requirements(trial): trial for trial in _sample_function_trials(sweep, space)}.values())
    combined: list[dict[str, Any]] = [dict(fixed)]
    for name, distribution in space.items():
        values = search_space.list_values(distribution)
        if name == "context_length":
            values = [max(values)]
        elif name == "max_train_tokens":
            values = [min((value for value in values if value is not None), default=None)]
        elif name not in ("dataset", "model", "pretrained"):
            values = values[:1]
        combined = [{**fields, name: value} for fields in combined for value in values]
    return [TrialConfig(**fields) for fields in combined]


def _sample_function_trials(sweep: Sweep, space_function: Any) -> Iterator[TrialConfig]:
    """Yield the trials of random points of a define-by-run function.

    Raises:
        SweepError: if a trial is invalid.
    """
    with suppress_warnings():
        for fields, _ in sample_random_points({}, space_function, 0):
            try:
                yield build_trial(fields)
            except SweepError as error:
                raise SweepError([p.nested_in("space(...)") for p in error.problems], sweep.name) from None


def build_trial(fields: Mapping[str, Any]) -> TrialConfig:
    """Return the trial with these fields; raise a SweepError for a mistake, which only a function can cause."""
    known = [field.name for field in dataclasses.fields(TrialConfig)]
    if problems := [unknown_field(name, known) for name in fields if name not in known]:
        raise SweepError(problems)
    return TrialConfig(**fields)


def sample_random_points(
    fixed_fields: Mapping[str, Any], space: Any, seed: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (fields of a trial, suggested part of them) for random points of a space.

    Args:
        fixed_fields: fields that are not suggested.
        space: distributions by field, or a define-by-run function.

    Raises:
        UserError: if the function raises, or does not return a dict or None.
    """
    study = optuna.create_study(storage=InMemoryStorage(), sampler=RandomSampler(seed=seed))
    distributions = to_distributions(space)
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


def to_distributions(space: Any) -> Any:
    """Return a space as Optuna's distributions; a define-by-run function is returned as it is."""
    return space if callable(space) else OptunaSearch.convert_search_space(dict(space))


def _input_requirements(trial: TrialConfig) -> tuple[Any, ...]:
    """Return the fields that decide which inputs a trial needs."""
    return *trial.corpus_key, trial.pretrained, trial.context_length, trial.max_train_tokens


def split_space(space: Any) -> tuple[dict[str, Any], Any]:
    """Return (fields with one value, distributions by field); ({}, space) for a define-by-run function."""
    if callable(space):
        return {}, space
    fixed = {name: value for name, value in space.items() if not search_space.is_distribution(value)}
    searched: Mapping[str, Any] = {name: value for name, value in space.items() if name not in fixed}
    return fixed, searched


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppress warnings, such as Optuna's about its experimental features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
