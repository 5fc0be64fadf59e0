"""Path of a GPU on fake CUDA tensors: operations and waits of a step, and where an optimizer's state is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import guard

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "fake_cuda_trial.py"
pytestmark = pytest.mark.skipif(not guard.can_build(), reason="needs Linux, g++ and torch without CUDA")


def run_trial(optimizer: str, steps: int) -> dict[str, Any]:
    """Train a gpt2 for some steps, the last one with a short window, and return what its steps did."""
    fields = {"model": "gpt2", "context_length": 64, "batch_size": 2, "optimizer": optimizer}
    arguments = json.dumps(fields), str(steps)
    done = subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert result["steps"] == steps
    return result


def test_a_step_with_adafactor_launches_few_kernels_and_the_host_rarely_waits() -> None:
    """One parameter at a time, Adafactor alone launches 2,786 kernels a step.

    Fake tensors count the norms of clipping one by one, 296 of the operations here, which are few kernels on a GPU.
    """
    steps = 11
    result = run_trial("adafactor", steps)
    assert result["waits"] == 3  # two reads of at most ten losses each, and one of the validation loss
    assert sum(result["operations"].values()) / steps < 1400
    assert result["operations"]["_foreach_sub_"] == 9 * (steps + 1)  # stacks of equal shapes
    assert result["resumed"].keys() == {"cuda"}


def test_adamw_updates_all_parameters_at_once_and_its_step_counts_resume_on_the_gpu() -> None:
    steps = 2
    result = run_trial("adamw", steps)
    assert result["operations"]["_fused_adamw_"] == 2 * (steps + 1)  # one group decays, the other one does not
    assert result["resumed"].keys() == {"cuda"}
