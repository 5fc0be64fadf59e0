"""Sweeps and trials to build in tests, and the problems that they have."""

from __future__ import annotations

from typing import Any

import pytest
from ray import tune

from raylm.config.sweep import Sweep
from raylm.errors import Problem, SweepError, UserError

RATES = tune.loguniform(1e-5, 1e-3)
SEARCH_SPACE = {"learning_rate": RATES, "batch_size": tune.choice([4, 8]), "epochs": 1}


def message_of(kind: type, **options: Any) -> str:
    """Return the error message of an invalid `TrialConfig`, `Resources` or `Sweep`."""
    with pytest.raises(UserError) as caught:
        kind(**options)
    return str(caught.value)


def list_locations(message: str) -> list[str]:
    """Return the location of each problem in a message."""
    return [line.strip().split(":")[0] for line in message.splitlines()[1:]]


def to_params(values: dict[str, list[Any]]) -> list[Any]:
    """Return one pytest parameter (name, value) per value, with an id that does not contain the value."""
    flat = [(field, number, value) for field, choices in values.items() for number, value in enumerate(choices)]
    return [pytest.param(field, value, id=f"{field}-{number}") for field, number, value in flat]


def search_sweep(space: Any = SEARCH_SPACE, **options: Any) -> Sweep:
    """Return a search over `SEARCH_SPACE`, with these options."""
    return Sweep(**{"name": "s", "space": space, "search": "optuna", "num_samples": 5, **options})


def grid_sweep(**options: Any) -> Sweep:
    """Return a grid of two trials, with these options."""
    return Sweep(**{"name": "s", "space": {"seed": tune.grid_search([1, 2])}, **options})


def problems_of(make: Any, **options: Any) -> list[Problem]:
    """Return the problems of a sweep."""
    with pytest.raises(SweepError) as caught:
        make(**options)
    return caught.value.problems


def assert_one_problem(make: Any, location: str, words: str, **options: Any) -> None:
    """Check that a sweep has exactly one problem, with this location and these words."""
    problems = problems_of(make, **options)
    assert [problem.location for problem in problems] == [location] and words in problems[0].message
    assert len(str(problems[0])) < 300
