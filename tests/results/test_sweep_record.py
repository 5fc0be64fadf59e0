"""Record of a sweep, and the rows that follow from it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import TRIAL, save_checkpoint
from ray.tune.search.sample import Categorical

from raylm import load_results
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results import sweep_record
from raylm.results.folder import find_results
from raylm.results.rows import DONE, PENDING
from raylm.results.storage import Folder
from raylm.results.sweep_record import (
    DataRecord,
    DeviceRecord,
    HardwareRecord,
    LaunchRecord,
    ModelRecord,
    Rules,
    SlotRecord,
    SweepRecord,
)

OTHER = TrialConfig(seed=2)
LAUNCH = LaunchRecord(
    1,
    "888c2713",
    "2026-11-25T02:15:55+00:00",
    {"raylm": "0.1.0"},
    "3.11.7",
    None,
    HardwareRecord("x86_64", "Linux", 2, "T4"),
    "float32",
    {"cpu": 1, "gpu": 0.5},
    SlotRecord(DeviceRecord("T4", None, 8.1, 320, 14.6), 0.5, 2, "float32"),
    [ModelRecord("gpt2-nano", pretrained=True)],
    [DataRecord("pydocs", "gpt2-nano", "3ca6", "bc05", 103_708, 60_842, 8921, 4659)],
)


def test_rows_are_in_the_order_of_the_record(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "launch-001/0", 3.0, num_epochs=1)
    trials = [{"id": trial.id, "run": trial.run_name, "config": trial.as_dict()} for trial in (OTHER, TRIAL)]
    (tmp_path / sweep_record.RECORD_FILE).write_text(
        json.dumps({"version": sweep_record.FORMAT_VERSION, "name": "s", "trials": trials})
    )
    results = load_results(str(tmp_path))
    assert Path(results.storage.uri) == tmp_path
    assert [(row.config, row.status) for row in results.rows] == [(OTHER, PENDING), (TRIAL, DONE)]


def test_record_survives_its_file(tmp_path: Path) -> None:
    records = [SweepRecord("plain", [TRIAL, OTHER], launches=[LAUNCH])]
    records += [SweepRecord("searched", [OTHER, TRIAL], "optuna", frozenset({TRIAL.id}), 4, True, [LaunchRecord(2)])]
    for record in records:
        sweep_record.write(Folder(tmp_path), record)
        assert sweep_record.load(Folder(tmp_path)) == record
        assert load_results(tmp_path).record == record


def test_record_keeps_the_measure_of_a_search_and_what_compares(tmp_path: Path) -> None:
    data = DataRecord("pydocs", "gpt2", validation_bytes=60_000, lossless=False, unknown_share=0.25)
    record = SweepRecord("s", [TRIAL], "optuna", launches=[LaunchRecord(1, data=[data])], objective="nats per byte")
    sweep_record.write(Folder(tmp_path), record)
    assert sweep_record.load(Folder(tmp_path)) == record
    text = (tmp_path / sweep_record.RECORD_FILE).read_text()
    assert "train_bytes" not in text and '"validation_bytes": 60000' in text, "unknown values are left out, as before"


def test_record_keeps_the_rules_of_a_search(tmp_path: Path) -> None:
    path, record = tmp_path / sweep_record.RECORD_FILE, SweepRecord("s", [TRIAL], "optuna", objective="val loss")
    for rules in (Rules.MEASURES, Rules.LATEST):
        sweep_record.write(Folder(tmp_path), replace(record, rules=rules))
        assert sweep_record.load(Folder(tmp_path)) == replace(record, rules=rules)
    text = path.read_text()
    path.write_text(text.replace(f'"rules": {Rules.LATEST:d},', ""))
    assert sweep_record.load(Folder(tmp_path)) == replace(record, rules=Rules.MEASURES), "an earlier version's"
    path.write_text(text.replace(f'"rules": {Rules.LATEST:d}', '"rules": 99'))
    with pytest.raises(UserError, match=r"has rules 99, but this raylm knows those up to .*; use the raylm that wrote"):
        sweep_record.load(Folder(tmp_path))


def test_record_without_search_fields_is_of_a_grid(tmp_path: Path) -> None:
    trials = [{"id": TRIAL.id, "run": TRIAL.run_name, "config": TRIAL.as_dict()}]
    content = {"version": sweep_record.FORMAT_VERSION, "name": "old", "trials": trials, "launches": [{"number": 1}]}
    (tmp_path / sweep_record.RECORD_FILE).write_text(json.dumps(content))
    assert sweep_record.load(Folder(tmp_path)) == SweepRecord("old", [TRIAL], launches=[LaunchRecord(1)])


def test_record_may_have_names_that_are_not_utf8(tmp_path: Path) -> None:
    trial = TrialConfig.from_record({"dataset": os.fsdecode(b"caf\xe9.txt")})
    sweep_record.write(Folder(tmp_path), SweepRecord("old", [trial]))
    assert sweep_record.load(Folder(tmp_path)) == SweepRecord("old", [trial])


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-1.5", "0"])
def test_rate_of_a_device_is_finite_and_above_zero(tmp_path: Path, value: str) -> None:
    device = DeviceRecord("gpu", 2.0, 1.0, gb_per_s=12345.0, gib=1.0)
    launch = LaunchRecord(1, slot=SlotRecord(device, 1.0, 1, "float32"))
    sweep_record.write(Folder(tmp_path), SweepRecord("s", [TRIAL], launches=[launch]))
    path = tmp_path / sweep_record.RECORD_FILE
    path.write_text(path.read_text().replace("12345.0", value))
    with pytest.raises(UserError, match="is damaged"):
        sweep_record.load(Folder(tmp_path))


def test_search_has_the_rows_it_has_suggested(tmp_path: Path) -> None:
    searched = Sweep(name="s", space={"seed": Categorical([1, 2, 3])}, search="random", num_samples=2)
    assert find_results(searched, Folder(tmp_path)).rows == []
    sweep_record.write(Folder(tmp_path), SweepRecord("s", [OTHER, TRIAL, TrialConfig(seed=3)], "random"))
    save_checkpoint(tmp_path, "launch-001/0", 3.0, num_epochs=1)
    assert [(row.config, row.status) for row in find_results(searched, Folder(tmp_path)).rows] == (
        [(OTHER, PENDING), (TRIAL, DONE)]
    )
    in_grid = Sweep(name="s", space={"seed": 1})
    assert [row.config for row in find_results(in_grid, Folder(tmp_path)).rows] == [TRIAL]


def test_folder_without_a_record_is_not_a_results_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert sweep_record.load(Folder(folder)) is None
        with pytest.raises(UserError, match="not a results folder"):
            load_results(folder)
