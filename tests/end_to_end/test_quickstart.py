"""The quickstart of the README, and the IMDb grid with real client libraries."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import torch
from conftest import RunSweep
from transformers import AutoModelForCausalLM

from raylm import load_results
from raylm.config.dataset import DatasetSpec
from raylm.data.corpus import Windows
from raylm.data.preparation import prepare
from raylm.training.device import resolve_precision

pytestmark = [pytest.mark.ray, pytest.mark.nightly]
PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def first_command(tmp_path: Path, run_sweep: RunSweep) -> tuple[str, Path]:
    """Return output and results of the README's first command; `.ci/run` has run it in a fresh environment."""
    if storage := os.environ.get("RAYLM_TESTS_QUICKSTART"):
        return Path(storage, "printed").read_text(), Path(storage, "quickstart")
    done = run_sweep(SWEEPS / "quickstart.py")
    assert done.returncode == 0, done.stderr
    return done.stdout, tmp_path / "runs" / "quickstart"


def test_quickstart_learns_and_its_best_checkpoint_loads_in_transformers(tmp_path: Path, run_sweep: RunSweep) -> None:
    printed, folder = first_command(tmp_path, run_sweep)
    assert "dashboard: http://127.0.0.1:" in printed
    rows = rows_of(folder)
    assert len(rows) >= 6
    assert {row["status"] for row in rows} == {"done"}
    assert len({row["learning_rate"] for row in rows}) > 1
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert float(best["first_loss"]) == pytest.approx(math.log(4096), abs=0.2)
    assert float(best["val_loss"]) < float(best["first_loss"]) - 2.5
    assert str(folder / best["checkpoint"]) in printed

    model = AutoModelForCausalLM.from_pretrained(folder / best["checkpoint"], dtype=torch.float32).eval()
    corpus = prepare(DatasetSpec("pydocs"), None, "gpt2-nano")
    windows = Windows(corpus.validation.tokens, int(best["context_length"]), corpus.start_token_id)
    (launch,) = load_results(folder).launches
    total = 0.0
    with torch.no_grad():
        for number in range(len(windows)):
            inputs = torch.from_numpy(windows.get_batch([number])[0])
            total += model(input_ids=inputs, labels=inputs).loss.item() * windows.count_tokens([number])
    # bfloat16 moves the mean loss by 6e-5: logits are not rounded; transformers under autocast rounds them: 2e-4
    is_half = resolve_precision(launch.precision, "cpu") == "bfloat16"
    tolerance = 1.5e-4 if is_half else 1e-5
    assert total / len(windows.tokens) == pytest.approx(float(best["val_loss"]), abs=tolerance)


def requests_so_far(hub: str) -> int:
    with urllib.request.urlopen(f"{hub}/_stats") as answer:
        return int(json.load(answer)["requests"])


@pytest.mark.chaos
def test_imdb_grid_makes_as_many_hub_requests_as_one_trial(
    hub_url: str, hub_env: dict[str, str], tmp_path: Path, run_sweep: RunSweep
) -> None:
    before = requests_so_far(hub_url)
    small = ["--set", "model=raylm-test/gpt2-tiny", "--set", "max_train_tokens=8192"]
    done = run_sweep(SWEEPS / "imdb_grid.py", *small, env=hub_env)
    assert done.returncode == 0, done.stderr
    asked = requests_so_far(hub_url) - before

    empty = {name: hub_env[name] + "-of-one" for name in ("HF_HOME", "RAYLM_CACHE")}
    subprocess.run([sys.executable, str(PROGRAMS / "one_trials_requests.py")], check=True, env={**hub_env, **empty})
    assert requests_so_far(hub_url) - before - asked == asked > 10

    rows = rows_of(tmp_path / "runs" / "imdb-grid")
    assert len(rows) == 5  # the 8 rows of the file, of which 3 name the same trial once the model is one
    for row in rows:
        assert row["status"] == "done"
        assert float(row["first_loss"]) == pytest.approx(math.log(50257), abs=0.1)
        ratio = float(row["adj_val_loss"]) / float(row["val_loss"])
        assert 1.27 < ratio < 1.30  # of the stand-in's 7,500 reviews
