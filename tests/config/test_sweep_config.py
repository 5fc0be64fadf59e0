"""Sweeps: the order of trials, accepted values, and reported problems."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from config_problems import list_locations, message_of, to_params
from ray import tune

from raylm.config import other_names
from raylm.config.sweep import MAX_TRIALS, Sweep
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import SweepError, UserError


def grid(*values: object) -> dict[str, list[object]]:
    """Return the same as `tune.grid_search`."""
    return {"grid_search": list(values)}


def make_sweep(space: Any, **options: Any) -> Sweep:
    return Sweep(**{"name": "valid", "space": space, **options})


# ---- the trials of a sweep ----------------------------------------------------------------------------------------


def test_last_field_of_a_grid_varies_fastest() -> None:
    trials = make_sweep({"context_length": grid(64, 32), "seed": 5, "batch_size": grid(4, 8)}).trials()
    in_order = [(trial.context_length, trial.seed, trial.batch_size) for trial in trials]
    assert in_order == [(64, 5, 4), (64, 5, 8), (32, 5, 4), (32, 5, 8)]


def test_duplicate_trials_run_once_at_their_first_position() -> None:
    sweep = make_sweep([{"seed": grid(3, 1, 3)}, {"seed": grid(1, 2)}, {"seed": 3, "learning_rate": 5e-5}])
    assert [trial.seed for trial in sweep.trials()] == [3, 1, 2]
    assert sweep.grid_size == 6


def test_override_sets_a_field_of_all_trials_and_removes_duplicates() -> None:
    sweep = make_sweep([{"seed": grid(1, 2), "batch_size": grid(4, 8)}, {"seed": 9}])
    assert [(trial.seed, trial.batch_size) for trial in sweep.override({"seed": 5}).trials()] == [(5, 4), (5, 8)]
    assert [trial.epochs for trial in sweep.override({"epochs": 2}).trials()] == [2] * 5
    with pytest.raises(UserError, match="batch_size"):
        sweep.override({"batch_size": 0})


def test_grid_has_a_maximum_number_of_trials() -> None:
    seeds = range(MAX_TRIALS)
    assert make_sweep({"seed": grid(*seeds)}).grid_size == MAX_TRIALS
    assert "10,001 trials" in message_of(Sweep, name="s", space={"seed": grid(*seeds, MAX_TRIALS)})
    huge = {name: grid(*range(1, 1001)) for name in ("seed", "epochs", "batch_size", "evals_per_epoch")}
    assert "1,000,000,000,000 trials" in message_of(Sweep, name="s", space=huge)


def test_maximum_number_of_trials_applies_to_all_spaces_together() -> None:
    spaces = [{"seed": grid(*range(start, start + 6000))} for start in (0, 6000)]
    assert "10,000" in message_of(Sweep, name="s", space=spaces)


# ---- problems of a sweep ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "location", "words"),
    [
        ({"batchsize": 8}, "space.batchsize", "did you mean 'batch_size'"),
        ([{"seed": 1}, {"lrx": 1}], "space[1].lrx", "expected one of dataset, model"),
        ([{"seed": 1}, {"lr": 1}], "space[1].lr", "did you mean 'learning_rate'"),
        ({"num_train_epochs": 3}, "space.num_train_epochs", "did you mean 'epochs'"),
        ({"Block-Size": 64}, "space.Block-Size", "did you mean 'context_length'"),
        ({"gradient_accumulation_steps": 4}, "space.gradient_accumulation_steps", "batch_size is the whole batch"),
        ({"n_layer": 4}, "space.n_layer", "expected another model, or a folder with a config.json"),
        ({"max_iters": 4}, "space.max_iters", "expected epochs, or max_train_tokens"),
        ({"bf16": True}, "space.bf16", "expected Sweep(precision='bfloat16', 'float16' or 'float32')"),
        ({"precision": "float32"}, "space.precision", "is an option of the sweep"),
        ({"learning_rate": [1e-4, 1e-3]}, "space.learning_rate", "or tune.grid_search([0.0001, 0.001]) to try each"),
        ({"seed": np.arange(2)}, "space.seed", "or tune.grid_search([0, 1]) to try each"),
        ({"seed": {"values": [0, 1]}}, "space.seed", "or tune.grid_search([0, 1]) to try each"),
        ({"dropout": {"min": 0, "max": 0.2}}, "space.dropout", "tune.uniform(0, 0.2) or tune.loguniform(...), and a"),
        ({1: 2}, "space.1", "not known"),
        ({"seed": grid()}, "space.seed", "empty"),
        ({"seed": {"grid_search": 3}}, "space.seed", "expected a list"),
        ({"seed": {"grid": [3]}}, "space.seed", "tune.grid_search"),
        ({"seed": grid(grid(1))}, "space.seed", "whole number"),
        ({"seed": grid(1, 2, "3")}, "space.seed", "got '3'"),
        ({}, "space", "is empty"),
        ([], "space", "is empty"),
        ([{}], "space[0]", "is empty"),
        (None, "space", "expected a dict"),
        ("seed", "space", "expected a dict"),
        ([{"seed": 1}, "seed"], "space", "expected a dict"),
        ({"model": grid("gpt2", "gpt2-xl"), "context_length": 2048}, "space.context_length", "at most 1024"),
    ],
)
def test_problem_of_a_space_is_located(space: Any, location: str, words: str) -> None:
    message = message_of(Sweep, name="s", space=space)
    assert list_locations(message)[0] == location and words in message


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (Resources, {"cpu": 2}, "resources.cpu: is not known; did you mean 'cpus'?"),
        (Resources, {"num_gpus": 2}, "resources.num_gpus: is not known; did you mean 'gpus'?"),
        (TrialConfig, {"lr": 1e-3}, "lr: is not known; did you mean 'learning_rate'?"),
        (Sweep, {"name": "s", "space": {"seed": 1}, "n_trials": 3}, "did you mean 'num_samples'?"),
        (Sweep, {"name": "s", "space": {"seed": 1}, "metric": "loss"}, "rows are ranked by val loss"),
        (Sweep, {"name": "s", "learning_rate": 1e-3}, 'expected space={"learning_rate": ...}'),
    ],
)
def test_name_of_another_tool_is_answered_with_the_one_that_is_meant(
    make: Any, options: dict[str, Any], words: str
) -> None:
    assert words in message_of(make, **options)


def test_resources_without_names_are_answered_with_them() -> None:
    with pytest.raises(SweepError, match=r"expected Resources\(gpus=..., cpus=...\)"):
        Resources(*[2])


def test_every_meant_field_exists_and_no_other_name_is_a_field() -> None:
    names = {field.name for field in dataclasses.fields(TrialConfig)}
    assert set(other_names.FIELD_NAMES) <= names
    assert set(other_names.SWEEP_NAMES) <= {field.name for field in dataclasses.fields(Sweep)}
    others = [*other_names.FIELD_NAMES.values(), *other_names.FIELD_ADVICE]
    words = [word for text in others for word in text.split()]
    assert len(words) == len(set(words)) and names.isdisjoint(words)


@pytest.mark.parametrize("field", ["model", "dataset", "optimizer", "learning_rate", "batch_size"])
@pytest.mark.parametrize("sampler", ["choice", "randn"])
def test_distribution_in_a_grid_suggests_grid_search(field: str, sampler: str) -> None:
    value = tune.choice([1, 2]) if sampler == "choice" else tune.randn()
    assert "tune.grid_search([...])" in message_of(Sweep, name="s", space={field: value})


INVALID_SWEEP_NAMES = [None, 1, "", ".", "..", "../x", "/abs", "a/b", "a\\b", "a..b", ".hidden", "-flag", "a b", "a\n"]
INVALID_SWEEP_NAMES += ["\n", "a\0", "ü", "😀", "x" * 65, "x" * 300]
INVALID_STORAGES = ["", "  ", 3, "ftp://bucket/runs", "s3://", "s3://b/../x", "s3://key:secret@bucket/runs", "nul\0"]


@pytest.mark.parametrize(
    ("option", "value"),
    to_params(
        {
            "name": INVALID_SWEEP_NAMES,
            "max_failures": [-1, 1001, 1.0, True, "2", None, math.nan],
            "precision": ["fp32", "", None, 16],
            "storage": INVALID_STORAGES,
            "resources": [None, 1, {"gpus": 1}],
        }
    ),
)
def test_invalid_option_is_reported(option: str, value: object) -> None:
    assert list_locations(message_of(Sweep, **{"name": "s", "space": {"seed": 1}, option: value})) == [option]


def test_storage_with_credentials_is_not_shown() -> None:
    message = message_of(Sweep, name="s", space={"seed": 1}, storage="s3://key:secret@bucket/runs")
    assert "set credentials in environment variables" in message and "secret" not in message


@pytest.mark.parametrize("name", ["a", "7", "imdb-grid_v1.2", "x" * 64])
def test_valid_sweep_name_is_kept(name: str) -> None:
    assert make_sweep({"seed": 1}, name=name).name == name


def test_unknown_option_is_reported_with_all_other_problems() -> None:
    message = message_of(Sweep, nam="s", space={"seed": -1, "modle": "gpt2"}, precision="half", max_failures=-1)
    locations = ["nam", "name", "precision", "max_failures", "space.seed", "space.modle"]
    assert sorted(list_locations(message)) == sorted(locations)
    assert "did you mean 'name'" in message and "did you mean 'model'" in message and "6 mistakes" in message


@pytest.mark.parametrize("gpus", [None, 0, 0.25, 1, 1.0, 2, 8.0])
def test_valid_resources_are_kept(gpus: float | None) -> None:
    assert make_sweep({"seed": 1}, resources=Resources(gpus=gpus, cpus=64)).resources == Resources(gpus=gpus, cpus=64)


@pytest.mark.parametrize(
    ("field", "value"),
    to_params(
        {
            "gpus": [1.5, 2.5, 1001, -1, -0.5, math.nan, math.inf, True, "1", 10**400],
            "cpus": [0, -1, 1.5, 2.0, True, "1", None, math.nan],
        }
    ),
)
def test_invalid_resources_are_reported(field: str, value: Any) -> None:
    assert list_locations(message_of(Resources, **{field: value})) == [f"resources.{field}"]


@pytest.mark.parametrize(
    ("space", "options"),
    [
        ({"batch_size": 1}, {}),
        ({"batch_size": grid(8, 1)}, {}),
        ([{"seed": 1}, {"batch_size": 1}], {}),
        ({"batch_size": tune.randint(1, 5)}, {"search": "random", "num_samples": 2}),
    ],
)
def test_batch_size_must_be_at_least_the_number_of_gpus(space: Any, options: dict[str, Any]) -> None:
    message = message_of(Sweep, name="s", space=space, resources=Resources(gpus=2), **options)
    assert list_locations(message) == ["space[1].batch_size" if isinstance(space, list) else "space.batch_size"]
    assert "got 1" in message and "2 GPUs" in message
    assert Sweep(name="s", space=space, resources=Resources(gpus=1), **options)


def test_options_are_converted_to_builtin_types() -> None:
    resources = Resources(gpus=np.float64(0.5), cpus=np.int64(2))  # type: ignore[arg-type]
    converted = (resources.gpus, resources.cpus, make_sweep({"seed": 1}, max_failures=np.int64(3)).max_failures)
    assert converted == (0.5, 2, 3) and list(map(type, converted)) == [float, int, int]


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_sweep_with_seeds_runs_each_row_with_every_seed() -> None:
    sweep = Sweep(name="s", space=[{"batch_size": 4}, {"batch_size": 8}], seeds=(0, 3))
    assert [(trial.batch_size, trial.seed) for trial in sweep.trials()] == [(4, 0), (4, 3), (8, 0), (8, 3)]
    assert sweep.grid_size == 4
    assert [trial.seed for trial in sweep.override({"seed": 7}).trials()] == [7, 7]


@pytest.mark.parametrize("seeds", [(), [1, 1], [-1], ["0"], 3, [1.5], [True]])
def test_invalid_seeds_are_rejected(seeds: object) -> None:
    with pytest.raises(SweepError, match=r"\bseeds: "):
        Sweep(name="s", space={"epochs": 1}, seeds=seeds)  # type: ignore[arg-type]


def test_seeds_conflict_with_a_seed_in_the_space() -> None:
    with pytest.raises(SweepError, match="seeds: cannot be combined with a seed"):
        Sweep(name="s", space={"seed": 1}, seeds=(1, 2))
