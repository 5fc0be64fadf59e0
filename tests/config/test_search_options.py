"""Search options: accepted searches, schedulers and points, and reported problems."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from config_problems import RATES, SEARCH_SPACE, assert_one_problem, grid_sweep, problems_of, search_sweep
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining
from ray.tune.search.optuna import OptunaSearch

from raylm.config.search_space import MAX_SAMPLES
from raylm.errors import Problem

# ---- options ------------------------------------------------------------------------------------------------------


INVALID_SEEDS: list[Any] = [-1, 1.5, None, "0", 2**32]
INVALID_NUMBERS: list[Any] = [0, -1, 2.5, 5.0, True, "5", MAX_SAMPLES + 1, 10**6]
INVALID_HOURS: list[Any] = [0, -1, "x", True, [1], math.nan, math.inf]
INVALID_POINTS: list[Any] = ["batch_size", [3], {}, None]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("search", "optunna", "got 'optunna'; expected 'optuna', 'random', an Optuna sampler, a Ray Tune searcher"),
        ("search", "optunna", "did you mean 'optuna'"),
        ("search", "tpe", "got 'tpe'"),
        ("search", 3, "got 3"),
        ("search", OptunaSearch, "got <class"),
        ("search", optuna.samplers.TPESampler, "got <class"),
        ("scheduler", "ashaa", "got 'ashaa'; expected 'asha', a Ray Tune scheduler, or None; did you mean 'asha'"),
        ("scheduler", True, "got True; expected 'asha'"),
        ("scheduler", ASHAScheduler, "got <class"),
        (
            "scheduler",
            PopulationBasedTraining(metric="x", mode="min", hyperparam_mutations={"learning_rate": [1e-4, 1e-3]}),
            "PopulationBasedTraining is not supported: it changes hyperparameters during training",
        ),
        ("num_samples", None, "is missing"),
        *[("num_samples", value, "from 1 to 10,000") for value in INVALID_NUMBERS],
        *[("search_seed", value, "expected a whole number from 0") for value in INVALID_SEEDS],
        ("seeds", (0, 1), "cannot be combined with search; set seed in the space instead"),
        *[("time_budget_hours", value, "expected a number of hours above 0") for value in INVALID_HOURS],
        *[("points_to_evaluate", value, "expected a list of dicts") for value in INVALID_POINTS],
    ],
)
def test_invalid_search_option_is_reported(option: str, value: Any, words: str) -> None:
    assert_one_problem(search_sweep, option, words, **{option: value})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("search", "random"),
        ("search", optuna.samplers.RandomSampler(seed=1)),
        ("search", OptunaSearch()),
        ("scheduler", FIFOScheduler()),
        ("scheduler", ASHAScheduler(max_t=9)),
        ("scheduler", MedianStoppingRule()),
        ("num_samples", 1),
        ("num_samples", MAX_SAMPLES),
        ("num_samples", np.int64(7)),
        ("search_seed", 2**32 - 1),
        ("time_budget_hours", 1),
        ("time_budget_hours", 0.001),
        ("time_budget_hours", np.float32(1.5)),
        ("points_to_evaluate", []),
        ("points_to_evaluate", ({}, {"batch_size": 8}, {"learning_rate": 1e-3, "batch_size": 4, "epochs": 1})),
    ],
)
def test_valid_search_option_is_kept(option: str, value: Any) -> None:
    assert getattr(search_sweep(**{option: value}), option) == value


def test_grid_rejects_search_options() -> None:
    assert_one_problem(grid_sweep, "num_samples", "requires search='optuna' or search='random'", num_samples=5)
    problems = problems_of(grid_sweep, points_to_evaluate=[{"seed": 1}])
    assert problems == [Problem("points_to_evaluate", "requires search='optuna' or search='random'")]
    assert grid_sweep(time_budget_hours=2, scheduler=FIFOScheduler()).search_name is None


@pytest.mark.parametrize(
    ("points", "location", "words"),
    [
        ([{"batch_size": 5}], "points_to_evaluate[0].batch_size", "is not in the space; expected one of 4, 8"),
        ([{}, {"learning_rate": 1.0}], "points_to_evaluate[1].learning_rate", "got 1.0, which is not in the space"),
        ([{"learning_rate": 1.0}], "points_to_evaluate[0].learning_rate", "expected 1e-05 to 0.001"),
        ([{"learning_rate": "x"}], "points_to_evaluate[0].learning_rate", "got 'x'"),
        ([{"learning_rate": math.nan}], "points_to_evaluate[0].learning_rate", "got nan"),
        ([{"epochs": 2}], "points_to_evaluate[0].epochs", "expected one of 1"),
        ([{"batch_siz": 4}], "points_to_evaluate[0].batch_siz", "is not in the space; did you mean 'batch_size'"),
        ([{"warmup_ratio": 0.1}], "points_to_evaluate[0].warmup_ratio", "is not in the space"),
    ],
)
def test_point_outside_the_space_is_reported(points: Any, location: str, words: str) -> None:
    assert_one_problem(search_sweep, location, words, points_to_evaluate=points)


@pytest.mark.parametrize(
    "value", [tune.sample_from(lambda spec: 1), {"grid_search": 3}, tune.grid_search([1, 2]), tune.choice([])]
)
def test_point_does_not_hide_the_problem_of_its_field(value: Any) -> None:
    problems = problems_of(
        search_sweep, space={"learning_rate": RATES, "seed": value}, points_to_evaluate=[{"seed": 1}]
    )
    assert "space.seed" in [problem.location for problem in problems]


def test_all_problems_of_a_search_are_reported_together() -> None:
    space = {"learning_rate": tune.uniform(2, 1), "seed": tune.grid_search([1]), "epoch": 2}
    problems = problems_of(
        search_sweep, space=space, search="tpe", scheduler="hyperband", num_samples=0, time_budget_hours=0
    )
    assert sorted(problem.location for problem in problems) == (
        ["num_samples", "scheduler", "search", "space.epoch", "space.learning_rate", "space.seed", "time_budget_hours"]
    )


# ---- early stopping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "accepted"),
    [
        ({}, False),
        ({"epochs": 1, "evals_per_epoch": 1}, False),
        ({"epochs": 2}, True),
        ({"evals_per_epoch": 9}, True),
    ],
)
def test_asha_requires_an_evaluation_before_the_end(fields: dict[str, Any], accepted: bool) -> None:
    for make, space in (
        (grid_sweep, {"seed": 1, **fields}),
        (grid_sweep, [{"seed": 1, **fields}, {"seed": 2}]),
        (search_sweep, SEARCH_SPACE),
    ):
        space = {**SEARCH_SPACE, **fields} if space is SEARCH_SPACE else space
        if accepted:
            assert make(space=space, scheduler="asha").scheduler == "asha"
        else:
            assert_one_problem(make, "space", "expected evals_per_epoch of at least 2", space=space, scheduler="asha")


@pytest.mark.parametrize("value", [tune.choice([1, 9]), tune.randint(1, 3)])
def test_asha_accepts_a_space_in_which_some_trials_have_intermediate_evaluations(value: Any) -> None:
    assert search_sweep({**SEARCH_SPACE, "evals_per_epoch": value}, scheduler="asha").scheduler == "asha"
    assert grid_sweep(space={"epochs": tune.grid_search([1, 2])}, scheduler="asha").scheduler == "asha"
    assert search_sweep(lambda trial: {}, scheduler="asha").scheduler == "asha"
