"""Sweeps through Ray on GPUs: two trials on halves of one, one trial of two ranks on two, checkpoints on storage."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import build_sweep_command

from gpu.counters import IS_FAKE
from raylm import load_results
from raylm.report.analysis import Results

pytestmark = pytest.mark.usefixtures("ray_tmpdir")
SWEEP = """
from ray import tune
from raylm import Resources, Sweep

sweep = Sweep(
    name="gpu",
    space={{
        "dataset": {dataset!r},
        "context_length": 32,
        "batch_size": 9,
        "learning_rate": tune.grid_search([1e-4, 1e-3]),
        "max_train_tokens": 20_000,
        "evals_per_epoch": 2,
        "optimizer": {optimizer!r},
    }},
    resources=Resources(gpus={gpus}),
)
"""


def run_sweep(folder: Path, dataset: Path, *, gpus: float, num_devices: int, optimizer: str) -> tuple[str, Results]:
    """Run a sweep of two trials to its end as a shell does; return its output and its results."""
    file = folder / "gpu.py"
    file.write_text(SWEEP.format(dataset=str(dataset), gpus=gpus, optimizer=optimizer))
    command = build_sweep_command(file, folder / "runs")
    # precision "auto" would be float32 on the CPU
    variables = {**os.environ, "FAKE_GPU_COUNT": str(num_devices), "ONEDNN_MAX_CPU_ISA": "AVX2", "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, load_results(folder / "runs" / "gpu")


@pytest.fixture(autouse=True)
def _free_gpu() -> Iterator[None]:
    """Leave the GPU's memory to the sweep's processes."""
    torch.cuda.empty_cache()
    yield


@pytest.mark.timeout(600)
def test_two_trials_share_a_gpu(small_text: Path, tmp_path: Path) -> None:
    output, results = run_sweep(tmp_path, small_text, gpus=0.5, num_devices=1, optimizer="adafactor")
    assert_finished(results)
    (launch,) = results.launches
    assert launch.precision == "bfloat16" or torch.cuda.get_device_capability() < (8, 0), output


@pytest.mark.skipif(not IS_FAKE and torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.timeout(600)
def test_a_trial_of_two_ranks_trains_on_two_gpus(small_text: Path, tmp_path: Path) -> None:
    output, results = run_sweep(tmp_path, small_text, gpus=2, num_devices=2, optimizer="adamw")
    assert_finished(results)
    progress = [row.best_checkpoint.progress for row in results.rows if row.best_checkpoint]
    assert [value.ranks for value in progress] == [2, 2], output


def assert_finished(results: Results) -> None:
    """Assert that all trials have finished, with losses of both evaluations and a checkpoint."""
    for row in results.rows:
        assert row.is_finished and len(row.evaluations) == 2
        assert row.best_checkpoint is not None
