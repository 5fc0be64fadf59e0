"""Search spaces and search options: accepted values, reported problems, and the values that a field can have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, PopulationBasedTraining
from ray.tune.search.optuna import OptunaSearch

from raylm.config import search_space
from raylm.config.search_space import MAX_SAMPLES
from raylm.config.sweep import Sweep
from raylm.errors import Problem, SweepError

RATES = tune.loguniform(1e-5, 1e-3)
SPACE = {"learning_rate": RATES, "batch_size": tune.choice([4, 8]), "epochs": 1}


def search_sweep(space: Any = SPACE, **named: Any) -> Sweep:
    return Sweep(**{"name": "s", "space": space, "search": "optuna", "num_samples": 5, **named})


def grid_sweep(**named: Any) -> Sweep:
    return Sweep(**{"name": "s", "space": {"seed": tune.grid_search([1, 2])}, **named})


def problems_of(make: Any, **named: Any) -> list[Problem]:
    with pytest.raises(SweepError) as caught:
        make(**named)
    return caught.value.problems


def assert_one_problem(make: Any, location: str, words: str, **named: Any) -> None:
    """Check that a sweep has exactly one problem, with this location and these words."""
    problems = problems_of(make, **named)
    assert [problem.location for problem in problems] == [location] and words in problems[0].message
    assert len(str(problems[0])) < 300


# ---- spaces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("batch_size", tune.grid_search([1, 2]), "in a search; expected tune.choice([...])"),
        ("batch_size", tune.choice([]), "the choice is empty"),
        ("batch_size", tune.choice([4, "8"]), "got '8'; expected a whole number"),
        ("batch_size", tune.choice([tune.choice([1, 2])]), "expected a whole number"),
        ("batch_size", tune.randint(0, 4), "got 0; expected a whole number"),
        ("batch_size", {"grid": [1]}, "tune.grid_search"),
        ("warmup_ratio", tune.uniform(0.0, 1.1), "got 1.1; expected a number from 0 to 1"),
        ("warmup_ratio", tune.uniform(0.5, 0.1), "got a range from 0.5 to 0.1; expected two numbers, the lower first"),
        ("batch_size", tune.randint(8, 8), "got a range from 8 to 8; expected two numbers, the lower first"),
        ("warmup_ratio", tune.sample_from(lambda spec: 0.5), "got a Tune distribution of type Function; expected tune"),
        ("optimizer", tune.choice(["adamw", "adafacto"]), "did you mean 'adafactor'"),
        ("learning_rat", tune.loguniform(1e-5, 1e-3), "did you mean 'learning_rate'"),
        ("dropout", -0.1, "got -0.1; expected a number, at least 0"),
    ],
)
def test_invalid_field_of_a_search_space_is_reported(name: str, value: Any, words: str) -> None:
    assert_one_problem(search_sweep, f"space.{name}", words, space={"learning_rate": RATES, name: value})


@pytest.mark.parametrize("value", [tune.uniform(1.5, 8.5), tune.uniform(1, 8), tune.quniform(1, 8, 1)])
def test_integer_field_rejects_a_range_of_floats(value: Any) -> None:
    problems = problems_of(search_sweep, space={"batch_size": value})
    assert {problem.location for problem in problems} == {"space.batch_size"}
    assert "expected a whole number" in problems[0].message


@pytest.mark.parametrize("value", [tune.qlograndint(2, 64, 2), tune.qloguniform(2, 64, 2)])
def test_distribution_that_optuna_does_not_have_is_rejected(value: Any) -> None:
    assert problems_of(search_sweep, space={"weight_decay": value})[0].location == "space.weight_decay"


def test_unbounded_distribution_is_rejected() -> None:
    assert {problem.location for problem in problems_of(search_sweep, space={"weight_decay": tune.randn()})} == (
        {"space.weight_decay"}
    )


@pytest.mark.parametrize(
    "value", [tune.choice([1, 2]), tune.randint(1, 5), tune.uniform(0, 1), tune.sample_from(lambda spec: 1)]
)
def test_distribution_in_a_grid_suggests_search_and_grid_search(value: Any) -> None:
    words = "requires search='optuna' or search='random'; for a grid, expected tune.grid_search([...])"
    assert_one_problem(grid_sweep, "space.seed", words, space={"seed": value})
    assert_one_problem(grid_sweep, "space[1].seed", words, space=[{"seed": 1}, {"seed": value}])


def test_function_space_requires_search() -> None:
    assert_one_problem(
        grid_sweep, "space", "a function requires search='optuna' or search='random'", space=lambda trial: {}
    )


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ([SPACE], "expected one dict of fields, or a function"),
        ([SPACE, SPACE], "expected one dict of fields, or a function"),
        (None, "expected one dict of fields, or a function"),
        ("seed", "expected one dict of fields, or a function"),
        ({}, "has no field to search"),
        ({"seed": 1}, "has no field to search; expected a distribution, such as tune.choice([...])"),
        ({"seed": tune.grid_search([1, 2])}, "has no field to search"),
    ],
)
def test_space_without_a_searchable_field_is_rejected(space: Any, words: str) -> None:
    assert_one_problem(search_sweep, "space", words, space=space)


@pytest.mark.parametrize(
    ("models", "lengths", "longest"),
    [
        (tune.choice(["EleutherAI/pythia-70m", "gpt2"]), 2048, 2048),
        ("gpt2", tune.choice([512, 2048]), 2048),
        (tune.choice(["EleutherAI/pythia-70m", "gpt2"]), tune.randint(16, 1026), 1025),
        ("gpt2", tune.qrandint(256, 1280, 256), 1280),
    ],
)
def test_context_longer_than_one_of_the_models_takes_is_rejected(models: Any, lengths: Any, longest: int) -> None:
    words = f"got {longest}; gpt2 takes at most 1024 tokens"
    space = {"learning_rate": RATES, "model": models, "context_length": lengths}
    assert_one_problem(search_sweep, "space.context_length", words, space=space)


def test_longest_context_of_a_model_can_be_searched() -> None:
    search_sweep({"model": "gpt2", "context_length": tune.randint(16, 1025)})
    search_sweep(
        {"model": tune.choice(["EleutherAI/pythia-70m", "owner/name"]), "context_length": tune.choice([2048, 512])}
    )


def test_search_space_may_have_more_combinations_than_a_grid() -> None:
    assert search_sweep({"seed": tune.choice(list(range(20_000))), "learning_rate": RATES}).num_samples == 5


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
        (search_sweep, SPACE),
    ):
        space = {**SPACE, **fields} if space is SPACE else space
        if accepted:
            assert make(space=space, scheduler="asha").scheduler == "asha"
        else:
            assert_one_problem(make, "space", "expected evals_per_epoch of at least 2", space=space, scheduler="asha")


@pytest.mark.parametrize("value", [tune.choice([1, 9]), tune.randint(1, 3)])
def test_asha_accepts_a_space_in_which_some_trials_have_intermediate_evaluations(value: Any) -> None:
    assert search_sweep({**SPACE, "evals_per_epoch": value}, scheduler="asha").scheduler == "asha"
    assert grid_sweep(space={"epochs": tune.grid_search([1, 2])}, scheduler="asha").scheduler == "asha"
    assert search_sweep(lambda trial: {}, scheduler="asha").scheduler == "asha"


# ---- values of a field --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "values"),
    [
        (3, [3]),
        (None, [None]),
        (tune.grid_search([1, 2]), [1, 2]),
        (tune.choice(["a", None, 3]), ["a", None, 3]),
        (tune.randint(2, 9), [2, 8]),
        (tune.lograndint(2, 9), [2, 8]),
        (tune.qrandint(2, 8, 2), [2, 8]),
        (tune.uniform(0.1, 0.9), [0.1, 0.9]),
        (tune.quniform(0.1, 0.9, 0.1), [0.1, 0.9]),
        (tune.loguniform(1e-5, 1e-3), [1e-5, 1e-3]),
    ],
)
def test_list_values_returns_choices_or_both_ends_of_a_range(value: Any, values: list[Any]) -> None:
    assert search_space.list_values(value) == values


@pytest.mark.parametrize(
    ("value", "distribution", "choice"),
    [
        (3, False, False),
        ([1, 2], False, False),
        (tune.grid_search([1, 2]), False, False),
        (tune.choice([1, 2]), True, True),
        (tune.randint(1, 2), True, False),
        (tune.quniform(0.1, 0.9, 0.1), True, False),
    ],
)
def test_distribution_is_distinguished_from_a_value(value: Any, distribution: bool, choice: bool) -> None:
    assert (search_space.is_distribution(value), search_space.is_choice(value)) == (distribution, choice)
    assert search_space.is_search_space({"seed": 0, "epochs": value}) == distribution


# ---- overrides and names ------------------------------------------------------------------------------------------


def test_override_fixes_a_searched_field() -> None:
    sweep = search_sweep(points_to_evaluate=[{"batch_size": 8, "learning_rate": 1e-4}, {"batch_size": 4}])
    changed = sweep.override({"batch_size": 16, "seed": 3})
    assert changed.space == {**SPACE, "batch_size": 16, "seed": 3}
    assert list(changed.points_to_evaluate) == [{"learning_rate": 1e-4}, {}]
    with pytest.raises(SweepError, match="has no field to search"):
        sweep.override({"batch_size": 16, "learning_rate": 1e-3})


def test_override_takes_precedence_over_a_function() -> None:
    changed = search_sweep(lambda trial: {"epochs": 2, "seed": 1}).override({"seed": 3, "batch_size": 4})
    assert callable(changed.space)
    assert changed.space(None) == {"epochs": 2, "seed": 3, "batch_size": 4}


@pytest.mark.parametrize(
    ("given", "name"),
    [("optuna", "optuna"), ("random", "random"), (optuna.samplers.RandomSampler(), "RandomSampler")],
)
def test_search_name_is_the_given_name_or_class(given: Any, name: str) -> None:
    assert search_sweep(search=given).search_name == name
