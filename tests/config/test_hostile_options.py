"""Options, fields, points and overrides of any value: each sweep is accepted, or refused with a readable message."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_values import (
    HOSTILE_NAMES,
    HOSTILE_VALUES,
    TUNE_VALUES,
    accept_or_refuse,
    assert_readable,
    list_places,
    time_limit,
)
from hostile_values import isolated as isolated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray import tune

from raylm.config.overrides import parse_overrides
from raylm.config.sweep import Sweep
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import SweepError, UserError

pytestmark = pytest.mark.usefixtures("isolated")

FIELDS = tuple(TrialConfig().as_dict())

GRID: dict[str, Any] = {
    "name": "valid",
    "space": {
        "dataset": "pydocs",
        "model": tune.grid_search(["gpt2", "gpt2-nano"]),
        "context_length": tune.grid_search([16, 32]),
        "learning_rate": 1e-3,
        "dropout": None,
        "epochs": 2,
        "pretrained": False,
    },
    "seeds": [0, 1],
    "scheduler": "asha",
    "time_budget_hours": 1.5,
    "precision": "auto",
    "max_failures": 1,
    "storage": "./runs",
    "resources": Resources(cpus=1),
}
UNION: dict[str, Any] = {
    "name": "valid",
    "space": [
        {"seed": 1, "dataset": "owner/name:part"},
        {"model": "owner/name", "context_length": 2048, "batch_size": tune.grid_search([4, 8])},
    ],
}
SEARCH: dict[str, Any] = {
    "name": "valid",
    "space": {
        "learning_rate": tune.loguniform(1e-5, 1e-3),
        "batch_size": tune.choice([4, 8]),
        "context_length": tune.randint(16, 65),
        "optimizer": tune.choice(["adamw", "adafactor"]),
        "epochs": 2,
    },
    "search": "optuna",
    "num_samples": 5,
    "search_seed": 1,
    "points_to_evaluate": [{"batch_size": 8}, {"learning_rate": 1e-4, "epochs": 2}],
    "scheduler": "asha",
}
VALID_SWEEPS = {"grid": GRID, "union": UNION, "search": SEARCH}


def list_spaces_with(field: str) -> list[dict[str, Any]]:
    """Return spaces with each hostile value of a field: by itself, in a grid and in a choice."""
    return [
        *({field: value} for value in HOSTILE_VALUES),
        *({field: {"grid_search": [value]}} for value in HOSTILE_VALUES),
        *({field: tune.choice([value])} for value in HOSTILE_VALUES),
    ]


def list_failures(sweeps: Sequence[dict[str, Any]]) -> list[str]:
    """Return one line per sweep that is neither accepted nor refused with a readable message."""
    failures = []
    for number, options in enumerate(sweeps):
        try:
            accept_or_refuse(partial(Sweep, **options))
        except Exception as error:
            failures.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
    return failures


@pytest.mark.parametrize(
    ("valid", "option"), [(kind, name) for kind, options in VALID_SWEEPS.items() for name in options]
)
def test_any_value_of_an_option_is_accepted_or_refused(valid: str, option: str) -> None:
    assert accept_or_refuse(lambda: Sweep(**VALID_SWEEPS[valid])) is not None
    assert list_failures([{**VALID_SWEEPS[valid], option: value} for value in HOSTILE_VALUES]) == []


@pytest.mark.parametrize("field", FIELDS)
def test_any_value_of_a_field_is_accepted_or_refused(field: str) -> None:
    spaces = [{"epochs": 2, "model": "owner/name", **changed} for changed in list_spaces_with(field)]
    assert list_failures([{"name": "s", "space": space} for space in spaces]) == []
    search_spaces = [{"learning_rate": tune.loguniform(1e-5, 1e-3), **space} for space in spaces]
    assert list_failures([{**SEARCH, "space": space, "points_to_evaluate": []} for space in search_spaces]) == []


@pytest.mark.parametrize("field", ["batch_size", "learning_rate", "epochs", "no such field"])
def test_any_value_in_a_point_to_evaluate_is_accepted_or_refused(field: str) -> None:
    assert list_failures([{**SEARCH, "points_to_evaluate": [{field: value}]} for value in HOSTILE_VALUES]) == []


@pytest.mark.parametrize("domain", TUNE_VALUES)
def test_point_in_any_domain_is_accepted_or_refused(domain: Any) -> None:
    space = {"learning_rate": tune.loguniform(1e-5, 1e-3), "seed": domain}
    points = [{"seed": value} for value in (1, "x", None, np.array([1, 2]), float("nan"))]
    assert list_failures([{**SEARCH, "space": space, "points_to_evaluate": [point]} for point in points]) == []


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, 1, None, (), float("nan")], ids=lambda name: ascii(name)[:20])
def test_unknown_name_is_reported_in_one_line_in_every_location(name: Any) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: Sweep(name="s", space={name: 1}),
        lambda: Sweep(name="s", space=[{"seed": 1}, {name: 1}]),
        partial(Sweep, **{**SEARCH, "points_to_evaluate": [{name: 1}]}),
        lambda: Sweep(name="s", space={"seed": 1}).override({name: 1}),
    ]
    if isinstance(name, str):
        unknown: dict[str, Any] = {"name": "s", "space": {"seed": 1}, name: 1}
        attempts += [partial(Sweep, **unknown)]
        attempts += [lambda: parse_overrides([f"{name}=1"], FIELDS), lambda: parse_overrides([name], FIELDS)]
    for attempt in attempts:
        with pytest.raises(SweepError) as caught:
            attempt()
        assert_readable(caught.value)


@pytest.mark.parametrize("field", FIELDS)
def test_any_value_of_an_override_is_accepted_or_refused(field: str) -> None:
    for valid in VALID_SWEEPS.values():
        sweep, failures = Sweep(**valid), []
        for value in HOSTILE_VALUES:
            try:
                accept_or_refuse(partial(sweep.override, {field: value}))
            except Exception as error:
                failures.append(f"{type(error).__name__}: {str(error)[:200]}")
        assert failures == []


def test_billion_seeds_are_refused_within_a_second() -> None:
    with time_limit(seconds=1.0), pytest.raises(UserError):
        Sweep(name="s", space={"epochs": 1}, seeds=range(10**9))


@pytest.mark.parametrize("content", ["[]", "{", "[" * 200_000, '{"n_positions": 8}', '{"n_positions": "8"}', "\0", ""])
def test_hostile_model_folder_is_accepted_or_refused(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "clear\x1b[2J\nthe screen"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    accept_or_refuse(lambda: Sweep(name="s", space={"model": str(folder), "context_length": 16}))


# ---- mutations of valid options -----------------------------------------------------------------------------------


ANY_VALUE = (
    st.sampled_from(HOSTILE_VALUES)
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.lists(st.integers() | st.floats() | st.text(max_size=3), max_size=3)
)
ANY_NAME = st.sampled_from([*FIELDS, *GRID, *SEARCH, *HOSTILE_NAMES]) | st.text(max_size=10)
MUTATIONS = ("replace", "remove", "rename", "add", "wrap", "grid", "choice", "repeat")


@st.composite
def mutated_options(draw: st.DrawFn, valid: dict[str, Any]) -> dict[str, Any]:
    """Draw the options of a sweep with up to four changes anywhere in them."""
    changed: dict[str, Any] = {
        name: copy.deepcopy(value) if isinstance(value, (dict, list)) else value for name, value in valid.items()
    }
    for _ in range(draw(st.integers(1, 4))):
        container, key = draw(st.sampled_from(list_places(changed) or [(changed, "name")]))
        mutation = draw(st.sampled_from(MUTATIONS))
        if mutation == "add" and isinstance(container, dict):
            container[draw(ANY_NAME)] = draw(ANY_VALUE)
        elif key not in (container if isinstance(container, dict) else range(len(container))):
            continue
        elif mutation == "remove":
            del container[key]
        elif mutation == "rename" and isinstance(container, dict):
            container[draw(ANY_NAME)] = container.pop(key)
        elif mutation == "repeat" and isinstance(container, list):
            container.append(container[key])
        elif mutation == "wrap":
            container[key] = [container[key]]
        elif mutation == "grid":
            container[key] = {"grid_search": [container[key], draw(ANY_VALUE)]}
        elif mutation == "choice":
            container[key] = tune.choice([container[key], draw(ANY_VALUE)])
        else:
            container[key] = draw(ANY_VALUE)
    return changed or {"name": "valid"}


@pytest.mark.parametrize("valid", VALID_SWEEPS)
def test_mutated_sweep_is_accepted_or_refused(valid: str) -> None:
    @given(mutated_options(VALID_SWEEPS[valid]), st.dictionaries(ANY_NAME, ANY_VALUE, max_size=2))
    @settings(derandomize=True, deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
    def check(options: dict[str, Any], override: dict[str, Any]) -> None:
        sweep = accept_or_refuse(lambda: Sweep(**options))
        if sweep is not None:
            accept_or_refuse(lambda: sweep.override(override))

    check()


@given(st.lists(st.tuples(ANY_NAME, st.text() | st.sampled_from(HOSTILE_NAMES)).map("=".join) | st.text(), max_size=4))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_any_set_option_is_accepted_or_refused(assignments: list[str]) -> None:
    try:
        values = parse_overrides(assignments, FIELDS)
    except SweepError as error:
        assert_readable(error)
    else:
        accept_or_refuse(lambda: Sweep(name="s", space={"epochs": 1}).override(values))
