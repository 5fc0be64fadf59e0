"""Search spaces: accepted grids and distributions, reported problems, and the values of a field."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from config_problems import RATES, SEARCH_SPACE, assert_one_problem, grid_sweep, problems_of, search_sweep
from ray import tune

from raylm.config import search_space
from raylm.errors import SweepError

# ---- spaces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("batch_size", tune.grid_search([1, 2]), "in a search; expected tune.choice([1, 2])"),
        ("batch_size", [1, 2], "got [1, 2]; expected one value, or tune.choice([1, 2]) to try each"),
        ("dropout", {"min": 0, "max": 0.2}, "expected tune.uniform(0, 0.2) or tune.loguniform(...)"),
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
        ([SEARCH_SPACE], "expected one dict of fields, or a function"),
        ([SEARCH_SPACE, SEARCH_SPACE], "expected one dict of fields, or a function"),
        (None, "expected one dict of fields, or a function"),
        ("seed", "expected one dict of fields, or a function"),
        ({}, "has no field to search"),
        ({"seed": 1}, "has no field to search; expected a distribution, such as tune.choice([...])"),
    ],
)
def test_space_without_a_searchable_field_is_rejected(space: Any, words: str) -> None:
    assert_one_problem(search_sweep, "space", words, space=space)


@pytest.mark.parametrize("value", [tune.grid_search([1, 2]), [1, 2]], ids=["grid", "list"])
def test_several_values_in_a_space_without_a_distribution_are_answered_with_a_choice(value: Any) -> None:
    assert_one_problem(search_sweep, "space.seed", "tune.choice([1, 2])", space={"seed": value})


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
    assert changed.space == {**SEARCH_SPACE, "batch_size": 16, "seed": 3}
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
