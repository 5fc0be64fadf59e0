"""Share of a GPU that a trial has: its process is limited to it, and refuses a GPU that torch cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import RunHere
from oracle import read_stable_table

from raylm import Resources, Sweep
from raylm.errors import WorkError
from raylm.training import device
from raylm.training.device import GpuReport
from raylm.tuning import trial_process, tuner


@pytest.mark.parametrize(("share", "limit"), [(0.5, 0.5 - 600 / 2**14), (1.0, 1.0), (0.01, 0.0)])
def test_a_trial_is_limited_to_its_share_of_a_gpu_and_the_next_one_to_its_own(
    share: float, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of a GPU of 16 GiB includes the CUDA context, so that two halves fit."""
    fractions: list[float] = []
    monkeypatch.setattr(device, "inspect_gpus", lambda: GpuReport(("NVIDIA H100",)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**33, 2**34))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    monkeypatch.setattr(device, "set_allocator_options", lambda: None)
    trial_process.prepare_gpu(share)
    assert fractions == [pytest.approx(limit)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPUs of this machine")
def test_a_process_names_the_reason_for_which_torch_cannot_use_its_gpu() -> None:
    with pytest.raises(WorkError, match=r"torch cannot use the GPU of .*: torch .*a build for CPUs"):
        trial_process.prepare_gpu(1.0)


@pytest.mark.ray
@pytest.mark.nightly
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPUs of this machine")
def test_trials_on_a_gpu_that_torch_cannot_use_have_failed_with_the_reason(
    small_text: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node that is added to the cluster after the launch has started."""
    space = {"dataset": str(small_text), "context_length": 32, "max_train_tokens": 300}
    sweep = Sweep(name="late", space=space, resources=Resources(gpus=1), precision="float32", max_failures=1)
    resolve_device = tuner.resolve_device
    monkeypatch.setattr("ray_cluster.resolve_device", resolve_device)
    done = run_here(sweep)
    assert done.exit_code == 1
    (row,) = read_stable_table(done.folder).values()
    assert row["status"] == "failed" and "torch cannot use the GPU of" in done.output
