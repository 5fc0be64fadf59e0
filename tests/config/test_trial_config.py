"""Trials: accepted values, reported problems, ids and run names."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from config_problems import list_locations, message_of, to_params
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.config.dataset import DATASET_OPTIONS
from raylm.config.trial import TrialConfig

# ---- the fields of a trial ----------------------------------------------------------------------------------------

VALID: dict[str, list[Any]] = {  # without the defaults
    "dataset": [
        "wikitext2",
        "wikitext103",
        "imdb",
        "owner/name",
        "owner/name:part",
        "Owner-1/na.me_2",
        "a/b:c@v1.0",
        "a/b@refs/x",
    ],
    "model": ["gpt2-medium", "gpt2-large", "gpt2-xl", "EleutherAI/pythia-70m"],
    "context_length": [2, 1023],
    "batch_size": [1, 1_000_000],
    "epochs": [2, 10_000],
    "optimizer": ["adamw"],
    "learning_rate": [1e-12, 1.0, 3e4],
    "lr_schedule": ["cosine", "constant"],
    "warmup_ratio": [0.0, 1.0],
    "weight_decay": [0.01, 10.0],
    "max_grad_norm": [0.0, 1e9],
    "dropout": [0.0, 0.999],
    "seed": [1, 2**32 - 1],
    "pretrained": [False],
    "max_train_tokens": [1, 10**15],
    "evals_per_epoch": [2, 1000],
    "text_column": ["body", "的"],
    "documents": ["line", "blank-line", "file"],
    "train_split": ["train[:1]", "all"],
    "validation_split": ["test"],
    "max_documents": [2, 10**15],
}
NOT_INTEGERS = [True, np.bool_(True), "8", b"8", 8.0, 1.5, math.nan, math.inf, -math.inf, [8], object()]
NOT_NUMBERS = [True, np.bool_(True), "0.1", b"0.1", 1j, math.nan, math.inf, -math.inf, 10**400, [0.1], object()]
INVALID_NAMES = [None, 1, True, b"gpt2", ["gpt2"], "", " ", "../x", "/no/such", "a/b/c", "owner/", "/name", "a b/c"]
INVALID_NAMES += ["-a/b", "a/-b", "a/..", "new\nline", "a/b\n", "nul\0", "\ud800", "😀", "x" * 300]
INVALID: dict[str, list[Any]] = {
    "dataset": [*INVALID_NAMES, "owner/name:", "owner/name:a b", "WikiText2", "gpt2"],
    "model": [*INVALID_NAMES, "owner/name:part", "GPT2", "gpt3"],
    "context_length": [*NOT_INTEGERS, None, 1, 0, -1024, 10**5000],
    "batch_size": [*NOT_INTEGERS, None, 0, -1, 1_000_001],
    "epochs": [*NOT_INTEGERS, None, 0, -1, 10_001],
    "optimizer": [None, 1, "adam", "AdamW", "", ["adamw"], np.array(["adamw", "adamw"])],
    "learning_rate": [*NOT_NUMBERS, None, 0, 0.0, -1e-5],
    "lr_schedule": [None, True, "Linear", "step", "", {}],
    "warmup_ratio": [*NOT_NUMBERS, None, -0.1, 1.1],
    "weight_decay": [*NOT_NUMBERS, None, -0.1],
    "max_grad_norm": [*NOT_NUMBERS, None, -1],
    "dropout": [*NOT_NUMBERS, 1, 1.0, -0.1],
    "seed": [*NOT_INTEGERS, None, -1, 2**32, 10**5000],
    "pretrained": [None, 0, 1, "True", "false", []],
    "max_train_tokens": [*NOT_INTEGERS, 0, -1],
    "evals_per_epoch": [*NOT_INTEGERS, None, 0, 1001],
    "text_column": [1, True, b"text", ["text"], "", " ", "\ud800"],
    "documents": [1, "lines", "Line", ""],
    "train_split": [1, ["train"], ""],
    "validation_split": [1, ["test"], ""],
    "max_documents": [*NOT_INTEGERS, 0, 1, -1],
}


def test_defaults_of_a_trial() -> None:
    assert list(VALID) == list(INVALID) == [field.name for field in fields(TrialConfig)]
    assert list(TrialConfig().as_dict().values()) == (
        ["pydocs", "gpt2-nano", 1024, 8, 1, "adafactor", 5e-5, "linear", 0.1, 0.0, 1.0, None, 0, True, None, 1]
        + [None] * 5
    )


def with_value(field: str, value: Any) -> dict[str, Any]:
    """Return fields of a trial with a value, and with a dataset that takes it: the text of `pydocs` is fixed."""
    dataset = {"dataset": "me/texts"} if field in DATASET_OPTIONS and value is not None else {}
    return {"model": "gpt2", **dataset, field: value}


@pytest.mark.parametrize(("field", "value"), to_params(VALID))
def test_field_accepts_valid_values(field: str, value: Any) -> None:
    assert getattr(TrialConfig(**with_value(field, value)), field) == value


@pytest.mark.parametrize(("field", "value"), to_params(INVALID))
def test_field_rejects_invalid_values(field: str, value: Any) -> None:
    message = message_of(TrialConfig, **{field: value})
    assert list_locations(message) == [field]
    assert any(
        words in message for words in ("expected", "there is no such file", "has no config.json", "at most 1024")
    )
    assert len(message) < 400


@pytest.mark.parametrize(
    ("field", "given", "converted"),
    [
        ("context_length", np.int64(64), 64),
        ("seed", np.uint8(7), 7),
        ("max_train_tokens", np.int32(5), 5),
        ("learning_rate", 1, 1.0),
        ("learning_rate", np.float32(0.5), 0.5),
        ("weight_decay", np.float16(0.25), 0.25),
        ("warmup_ratio", Fraction(1, 4), 0.25),
        ("dropout", np.int64(0), 0.0),
        ("pretrained", np.bool_(False), False),
        ("model", np.str_("gpt2"), "gpt2"),
        ("optimizer", np.str_("adamw"), "adamw"),
    ],
)
def test_field_is_converted_to_its_own_type(field: str, given: Any, converted: Any) -> None:
    config = TrialConfig(**{field: given})
    assert getattr(config, field) == converted and type(getattr(config, field)) is type(converted)
    assert config.id == TrialConfig(**{field: converted}).id


def test_all_invalid_fields_are_reported_together() -> None:
    message = message_of(TrialConfig, model="gpt2-larg", batch_size=0, dropout="no", lr_schedule="cosin")
    assert list_locations(message) == ["model", "batch_size", "lr_schedule", "dropout"]
    assert "4 mistakes" in message and "'gpt2-large'" in message and "'cosine'" in message


def test_value_is_shown_in_one_line_of_a_message() -> None:
    assert len(message_of(TrialConfig, learning_rate=np.zeros((20, 20))).splitlines()) == 2


def test_dataset_may_be_a_file_a_folder_or_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data" / "texts").mkdir(parents=True)
    (tmp_path / "data" / "a.jsonl").write_text("{}")
    for name in ("data/texts", "data/a.jsonl", "./data", "data/*.jsonl", "~/data/a.jsonl"):
        assert TrialConfig(dataset=name).dataset == name
    message = message_of(TrialConfig, dataset="data/A.jsonl")
    assert f"there is no such file in {tmp_path}; did you mean 'data/a.jsonl'?" in message
    assert "nor the folder 'dta'" in message_of(TrialConfig, dataset="dta/a.jsonl")


def test_file_name_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    path.write_text("some text\n")
    assert "expected a name in UTF-8" in message_of(TrialConfig, dataset=str(path))


@pytest.mark.parametrize("name", ["model", "models/model"], ids=["plain", "like a hub id"])
def test_model_folder_requires_a_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(parents=True)
    assert "no config.json" in message_of(TrialConfig, model=name)
    Path(name, "config.json").write_text("[]")
    assert "not a JSON object" in message_of(TrialConfig, model=name)
    Path(name, "config.json").write_text("{}")
    assert TrialConfig(model=name, context_length=10**6).model == name


@pytest.mark.parametrize("key", ["named", "n_positions", "max_position_embeddings"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_context_longer_than_the_model_takes_is_rejected(tmp_path: Path, key: str, pretrained: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps({key: 1024}))
    model = "gpt2" if key == "named" else str(tmp_path)
    assert TrialConfig(model=model, context_length=1024, pretrained=pretrained).context_length == 1024
    message = message_of(TrialConfig, model=model, context_length=1025, pretrained=pretrained)
    assert list_locations(message) == ["context_length"] and "1025" in message and "at most 1024" in message


# ---- ids, names, records ------------------------------------------------------------------------------------------


def test_id_and_run_name_of_the_default_never_change() -> None:
    assert TrialConfig().id == "1616337203"
    assert TrialConfig().run_name == "pydocs-gpt2-nano-1024x8-1616337203"


def test_id_ignores_the_order_of_fields_and_fields_that_are_none() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Later(TrialConfig):
        a_new_field: int | None = None

    assert Later.from_record({}).id == TrialConfig().id
    assert Later.from_record({"a_new_field": 0}).id != TrialConfig().id
    assert TrialConfig.from_record(dict(reversed(TrialConfig().as_dict().items()))).id == TrialConfig().id


def test_every_field_changes_the_id() -> None:
    configs = [TrialConfig(**with_value(field, value)) for field, values in VALID.items() for value in values]
    configs += [TrialConfig(), TrialConfig(model="gpt2"), TrialConfig(model="gpt2", dataset="me/texts")]
    assert len({config.id for config in configs}) == len({config.run_name for config in configs}) == len(configs)


@pytest.mark.parametrize("field", ["warmup_ratio", "weight_decay", "max_grad_norm", "dropout"])
def test_equal_configs_have_equal_ids(field: str) -> None:
    zeros: list[dict[str, Any]] = [{field: 0.0}, {field: -0.0}, {field: 0}]
    assert len({TrialConfig(**zero) for zero in zeros}) == len({TrialConfig(**zero).id for zero in zeros}) == 1


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_run_name_is_unique_and_safe_as_a_folder_name(first: tuple[str, str], second: tuple[str, str]) -> None:
    names = [TrialConfig.from_record({"dataset": pair[0], "model": pair[1]}).run_name for pair in (first, second)]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{,90}[a-z0-9]", name) for name in names)
    assert (names[0] == names[1]) == (first == second)


@pytest.mark.parametrize(
    ("config", "readable"),
    [
        ({"dataset": "owner/Name:part", "model": "/models/My GPT/"}, "name-part-my-gpt-1024x8"),
        ({"learning_rate": 1e-3, "epochs": 3, "seed": 7}, "pydocs-gpt2-nano-1024x8-lr0.001-e3-s7"),
        ({"dataset": "../..", "model": "日本"}, "local-local-1024x8"),
        (
            {"optimizer": "adamw", "dropout": 0.1, "lr_schedule": "cosine", "learning_rate": 1e-3, "seed": 7},
            "pydocs-gpt2-nano-1024x8-lr0.001-adamw-cosine-drop0.1-s7",
        ),
        (
            {"pretrained": False, "max_train_tokens": 20_000, "documents": "blank-line", "train_split": "Train/1"},
            "pydocs-gpt2-nano-1024x8-random-tokens20000-blank-line-train-1",
        ),
        (
            {"warmup_ratio": 0.25, "weight_decay": 0.5, "max_grad_norm": 1e6, "evals_per_epoch": 4, "max_documents": 9},
            "pydocs-gpt2-nano-1024x8-warmup0.25-wd0.5-clip1e+06-evals4-documents9",
        ),
        ({"learning_rate": 1 / 3, "optimizer": "adamw", "model": "m" * 40, "dataset": 40 * "d", "dropout": 1 / 3}, "-"),
    ],
)
def test_run_name_is_readable(config: dict[str, object], readable: str) -> None:
    recorded = TrialConfig.from_record(config)
    if readable == "-":  # a field that has no room is left out, a shorter one is not
        readable = f"{24 * 'd'}-{24 * 'm'}-1024x8-lr0.333333-adamw"
    assert recorded.run_name == f"{readable}-{recorded.id}"


def test_folder_of_a_version_before_has_fewer_fields_in_its_name() -> None:
    config = TrialConfig(optimizer="adamw", learning_rate=1e-3, dropout=0.5, epochs=2, seed=3)
    before = f"pydocs-gpt2-nano-1024x8-lr0.001-e2-s3-{config.id}"
    assert config.folder_names == (f"pydocs-gpt2-nano-1024x8-lr0.001-e2-adamw-drop0.5-s3-{config.id}", before)
    same = TrialConfig(learning_rate=1e-3, seed=3)
    assert same.folder_names == (same.run_name,)


def test_from_record_restores_a_config_without_validation(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a\nb\n")
    config = TrialConfig(dataset=str(tmp_path / "text.txt"), learning_rate=3e-4, dropout=0.2)
    (tmp_path / "text.txt").unlink()
    again = TrialConfig.from_record(json.loads(json.dumps({**config.as_dict(), "no_longer_a_field": 1})))
    assert again == config and again.id == config.id
    assert TrialConfig.from_record({}) == TrialConfig()
