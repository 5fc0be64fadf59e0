"""Spaces and the options of a search: what they take, what they name as wrong, and what a field can be."""

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


def search(space: Any = SPACE, **named: Any) -> Sweep:
    return Sweep(**{"name": "s", "space": space, "search": "optuna", "num_samples": 5, **named})


def grid(**named: Any) -> Sweep:
    return Sweep(**{"name": "s", "space": {"seed": tune.grid_search([1, 2])}, **named})


def refused(make: Any, **named: Any) -> list[Problem]:
    with pytest.raises(SweepError) as caught:
        make(**named)
    return caught.value.problems


def refused_once(make: Any, where: str, words: str, **named: Any) -> None:
    """A sweep has one mistake, which is there and says this."""
    problems = refused(make, **named)
    assert [problem.location for problem in problems] == [where] and words in problems[0].message
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
        ("warmup_ratio", tune.sample_from(lambda spec: 0.5), "got Function of Tune; expected tune.choice"),
        ("optimizer", tune.choice(["adamw", "adafacto"]), "did you mean 'adafactor'"),
        ("learning_rat", tune.loguniform(1e-5, 1e-3), "did you mean 'learning_rate'"),
        ("dropout", -0.1, "got -0.1; expected a number from 0"),
    ],
)
def test_a_mistake_in_a_searched_space(name: str, value: Any, words: str) -> None:
    refused_once(search, f"space.{name}", words, space={"learning_rate": RATES, name: value})


@pytest.mark.parametrize("value", [tune.uniform(1.5, 8.5), tune.uniform(1, 8), tune.quniform(1, 8, 1)])
def test_a_whole_number_is_not_drawn_from_a_range_of_real_ones(value: Any) -> None:
    problems = refused(search, space={"batch_size": value})
    assert {problem.location for problem in problems} == {"space.batch_size"}
    assert "expected a whole number" in problems[0].message


@pytest.mark.parametrize("value", [tune.qlograndint(2, 64, 2), tune.qloguniform(2, 64, 2)])
def test_a_distribution_that_optuna_does_not_have_is_refused(value: Any) -> None:
    assert refused(search, space={"weight_decay": value})[0].location == "space.weight_decay"


def test_a_range_without_ends_is_refused() -> None:
    assert {problem.location for problem in refused(search, space={"weight_decay": tune.randn()})} == (
        {"space.weight_decay"}
    )


@pytest.mark.parametrize(
    "value", [tune.choice([1, 2]), tune.randint(1, 5), tune.uniform(0, 1), tune.sample_from(lambda spec: 1)]
)
def test_a_distribution_without_a_search_hints_to_both_ways(value: Any) -> None:
    words = "tune.grid_search([...]); for a search say search='optuna' or 'random'"
    refused_once(grid, "space.seed", words, space={"seed": value})
    refused_once(grid, "space[1].seed", words, space=[{"seed": 1}, {"seed": value}])


def test_a_function_without_a_search_is_refused() -> None:
    refused_once(grid, "space", "got a function; that is for a search", space=lambda trial: {})


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ([SPACE], "expected one dict of fields, or a function"),
        ([SPACE, SPACE], "expected one dict of fields, or a function"),
        (None, "expected one dict of fields, or a function"),
        ("seed", "expected one dict of fields, or a function"),
        ({}, "leaves nothing open"),
        ({"seed": 1}, "leaves nothing open; expected tune.choice([...])"),
        ({"seed": tune.grid_search([1, 2])}, "leaves nothing open"),
    ],
)
def test_what_cannot_be_searched(space: Any, words: str) -> None:
    refused_once(search, "space", words, space=space)


@pytest.mark.parametrize(
    ("models", "lengths", "longest"),
    [
        (tune.choice(["EleutherAI/pythia-70m", "gpt2"]), 2048, 2048),
        ("gpt2", tune.choice([512, 2048]), 2048),
        (tune.choice(["EleutherAI/pythia-70m", "gpt2"]), tune.randint(16, 1026), 1025),
        ("gpt2", tune.qrandint(256, 1280, 256), 1280),
    ],
)
def test_a_context_longer_than_one_of_the_models_takes(models: Any, lengths: Any, longest: int) -> None:
    words = f"got {longest}; gpt2 takes at most 1024 tokens"
    space = {"learning_rate": RATES, "model": models, "context_length": lengths}
    refused_once(search, "space.context_length", words, space=space)


def test_the_longest_context_may_be_searched() -> None:
    search({"model": "gpt2", "context_length": tune.randint(16, 1025)})
    search({"model": tune.choice(["EleutherAI/pythia-70m", "owner/name"]), "context_length": tune.choice([2048, 512])})


def test_a_space_may_hold_more_combinations_than_a_grid_may() -> None:
    assert search({"seed": tune.choice(list(range(20_000))), "learning_rate": RATES}).num_samples == 5


# ---- options ------------------------------------------------------------------------------------------------------


NO_SEED: list[Any] = [-1, 1.5, None, "0", 2**32]
NO_NUMBER: list[Any] = [0, -1, 2.5, 5.0, True, "5", MAX_SAMPLES + 1, 10**6]
NO_HOURS: list[Any] = [0, -1, "x", True, [1], math.nan, math.inf]
NO_POINTS: list[Any] = ["batch_size", [3], {}, None]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("search", "optunna", "got 'optunna'; expected 'optuna', 'random', a sampler of Optuna, or a searcher of Ray"),
        ("search", "optunna", "did you mean 'optuna'"),
        ("search", "tpe", "got 'tpe'"),
        ("search", 3, "got 3"),
        ("search", OptunaSearch, "got <class"),
        ("search", optuna.samplers.TPESampler, "got <class"),
        ("scheduler", "ashaa", "got 'ashaa'; expected 'asha', a scheduler of Ray Tune, or None; did you mean 'asha'"),
        ("scheduler", True, "got True; expected 'asha'"),
        ("scheduler", ASHAScheduler, "got <class"),
        (
            "scheduler",
            PopulationBasedTraining(metric="x", mode="min", hyperparam_mutations={"learning_rate": [1e-4, 1e-3]}),
            "got PopulationBasedTraining, which changes trials on their way",
        ),
        ("num_samples", None, "is missing"),
        *[("num_samples", value, "from 1 to 10,000") for value in NO_NUMBER],
        *[("search_seed", value, "expected a whole number from 0") for value in NO_SEED],
        ("seeds", (0, 1), "and a search; expected one of them, or a seed in the space"),
        *[("time_budget_hours", value, "expected a number of hours above 0") for value in NO_HOURS],
        *[("points_to_evaluate", value, "expected a list of dicts") for value in NO_POINTS],
    ],
)
def test_an_option_that_does_not_fit_a_search(option: str, value: Any, words: str) -> None:
    refused_once(search, option, words, **{option: value})


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
def test_an_option_that_fits_a_search(option: str, value: Any) -> None:
    assert getattr(search(**{option: value}), option) == value


def test_a_grid_takes_no_options_of_a_search() -> None:
    refused_once(grid, "num_samples", "is for a search; say search='optuna' or 'random' too", num_samples=5)
    problems = refused(grid, points_to_evaluate=[{"seed": 1}])
    assert problems == [Problem("points_to_evaluate", "is for a search; say search='optuna' or 'random' too")]
    assert grid(time_budget_hours=2, scheduler=FIFOScheduler()).search_name is None


@pytest.mark.parametrize(
    ("points", "where", "words"),
    [
        ([{"batch_size": 5}], "points_to_evaluate[0].batch_size", "does not hold; expected one of 4, 8"),
        ([{}, {"learning_rate": 1.0}], "points_to_evaluate[1].learning_rate", "got 1.0, which the space does not hold"),
        ([{"learning_rate": 1.0}], "points_to_evaluate[0].learning_rate", "expected 1e-05 to 0.001"),
        ([{"learning_rate": "x"}], "points_to_evaluate[0].learning_rate", "got 'x'"),
        ([{"learning_rate": math.nan}], "points_to_evaluate[0].learning_rate", "got nan"),
        ([{"epochs": 2}], "points_to_evaluate[0].epochs", "expected one of 1"),
        ([{"batch_siz": 4}], "points_to_evaluate[0].batch_siz", "is not in the space; did you mean 'batch_size'"),
        ([{"warmup_ratio": 0.1}], "points_to_evaluate[0].warmup_ratio", "is not in the space"),
    ],
)
def test_a_point_that_is_not_in_the_space(points: Any, where: str, words: str) -> None:
    refused_once(search, where, words, points_to_evaluate=points)


@pytest.mark.parametrize(
    "value", [tune.sample_from(lambda spec: 1), {"grid_search": 3}, tune.grid_search([1, 2]), tune.choice([])]
)
def test_a_point_beside_a_mistake_in_its_field(value: Any) -> None:
    problems = refused(search, space={"learning_rate": RATES, "seed": value}, points_to_evaluate=[{"seed": 1}])
    assert "space.seed" in [problem.location for problem in problems]


def test_all_mistakes_of_a_search_are_named_at_once() -> None:
    space = {"learning_rate": tune.uniform(2, 1), "seed": tune.grid_search([1]), "epoch": 2}
    problems = refused(search, space=space, search="tpe", scheduler="hyperband", num_samples=0, time_budget_hours=0)
    assert sorted(problem.location for problem in problems) == (
        ["num_samples", "scheduler", "search", "space.epoch", "space.learning_rate", "space.seed", "time_budget_hours"]
    )


# ---- early stopping -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({}, False),
        ({"epochs": 1, "evals_per_epoch": 1}, False),
        ({"epochs": 2}, True),
        ({"evals_per_epoch": 9}, True),
    ],
)
def test_asha_needs_an_evaluation_before_the_end(fields: dict[str, Any], fits: bool) -> None:
    for make, space in ((grid, {"seed": 1, **fields}), (grid, [{"seed": 1, **fields}, {"seed": 2}]), (search, SPACE)):
        space = {**SPACE, **fields} if space is SPACE else space
        if fits:
            assert make(space=space, scheduler="asha").scheduler == "asha"
        else:
            refused_once(make, "space", "asha needs evals_per_epoch of 2 at least", space=space, scheduler="asha")


@pytest.mark.parametrize("value", [tune.choice([1, 9]), tune.randint(1, 3)])
def test_asha_is_content_where_some_trials_are_evaluated_on_their_way(value: Any) -> None:
    assert search({**SPACE, "evals_per_epoch": value}, scheduler="asha").scheduler == "asha"
    assert grid(space={"epochs": tune.grid_search([1, 2])}, scheduler="asha").scheduler == "asha"
    assert search(lambda trial: {}, scheduler="asha").scheduler == "asha"


# ---- what a field can be ------------------------------------------------------------------------------------------


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
def test_a_field_can_be_its_values_or_between_the_ends_of_its_range(value: Any, values: list[Any]) -> None:
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
def test_a_distribution_is_told_from_a_value(value: Any, distribution: bool, choice: bool) -> None:
    assert (search_space.is_distribution(value), search_space.is_choice(value)) == (distribution, choice)
    assert search_space.is_search_space({"seed": 0, "epochs": value}) == distribution


# ---- fields that are set for all trials ---------------------------------------------------------------------------


def test_a_field_that_is_set_for_all_trials_is_searched_no_more() -> None:
    made = search(points_to_evaluate=[{"batch_size": 8, "learning_rate": 1e-4}, {"batch_size": 4}])
    changed = made.override({"batch_size": 16, "seed": 3})
    assert changed.space == {**SPACE, "batch_size": 16, "seed": 3}
    assert list(changed.points_to_evaluate) == [{"learning_rate": 1e-4}, {}]
    with pytest.raises(SweepError, match="leaves nothing open"):
        made.override({"batch_size": 16, "learning_rate": 1e-3})


def test_a_field_that_is_set_goes_before_what_a_function_says() -> None:
    changed = search(lambda trial: {"epochs": 2, "seed": 1}).override({"seed": 3, "batch_size": 4})
    assert callable(changed.space)
    assert changed.space(None) == {"epochs": 2, "seed": 3, "batch_size": 4}


@pytest.mark.parametrize(
    ("given", "name"),
    [("optuna", "optuna"), ("random", "random"), (optuna.samplers.RandomSampler(), "RandomSampler")],
)
def test_a_search_says_by_what_it_is(given: Any, name: str) -> None:
    assert search(search=given).search_name == name
