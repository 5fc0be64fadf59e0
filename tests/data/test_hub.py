"""Sweeps with a slow and then unreachable hub: each file is fetched once, and trials run without the hub."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from pathlib import Path

import pytest
from conftest import SMALL_HUB_DATASET, SMALL_HUB_MODEL, RunSweep, serve_hub, write_small_hub
from oracle import hash_best_weights, read_stable_table

pytestmark = pytest.mark.ray

HUB_DELAY_SECONDS = 0.3

SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name={name!r}, space={{
    "dataset": {dataset!r}, "model": {model!r}, "context_length": 16, "batch_size": 4,
    "learning_rate": tune.grid_search({rates}), "max_train_tokens": 500,
}}, resources=Resources(cpus=1, gpus=0))
"""


def test_files_are_fetched_once_and_later_sweeps_need_no_hub(
    small_text: Path, tmp_path: Path, ray_address: str, run_sweep: RunSweep
) -> None:
    lines = [(small_text / f"{split}.txt").read_text().splitlines() for split in ("train", "validation")]
    root = write_small_hub(tmp_path / "root", *lines)
    files = {}
    for name, rates in (("first", [1e-3, 2e-3]), ("second", [2e-3, 3e-3])):
        files[name] = tmp_path / f"{name}.py"
        files[name].write_text(SWEEP.format(name=name, dataset=SMALL_HUB_DATASET, model=SMALL_HUB_MODEL, rates=rates))
    folders = {"HF_HOME": str(tmp_path / "hf"), "RAYLM_CACHE": str(tmp_path / "raylm"), "HF_HUB_OFFLINE": "0"}

    with serve_hub("--root", str(root), "--delay", str(HUB_DELAY_SECONDS)) as endpoint:
        env = {**os.environ, **folders, "HF_ENDPOINT": endpoint}
        done = run_sweep(files["first"], "--address", ray_address, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        with urllib.request.urlopen(f"{endpoint}/_stats") as response:
            requests: dict[str, int] = json.load(response)["by_path"]
    fetched = {path: count for path, count in requests.items() if re.match(r"GET .*\.(safetensors|parquet)$", path)}
    assert len(fetched) == 3
    assert set(fetched.values()) == {1}, "two trials, each file once"

    done = run_sweep(files["second"], "--address", ray_address, env=env)  # the hub is gone
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"the hub cannot be reached; dataset {SMALL_HUB_DATASET} is used at its last known commit" in done.stderr
    first, second = tmp_path / "runs" / "first", tmp_path / "runs" / "second"
    assert {row["status"] for row in read_stable_table(second).values()} == {"done"}
    rows = [read_stable_table(folder) for folder in (first, second)]
    (common,) = rows[0].keys() & rows[1].keys()
    best = [row[common].pop("best") for row in rows]  # among other rows
    assert rows[1][common] == rows[0][common] and set(best) <= {"True", "False"}
    assert hash_best_weights(second)[common] == hash_best_weights(first)[common]
