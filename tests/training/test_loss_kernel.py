"""Triton kernel of the loss: its numbers in Triton's interpreter, and its binaries for GPUs that are not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
PROGRAMS = Path(__file__).resolve().parents[1] / "programs"


def run_program(name: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(PROGRAMS / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_losses_and_gradients_equal_those_of_torch_in_float64() -> None:
    results = run_program("loss_kernel_numbers.py")
    assert set(results) == {"one block", "float32", "bfloat16", "float16"}
    rounding = {"bfloat16": 2**-8, "float16": 2**-11}
    for name, differences in results.items():
        assert differences["loss"] < 1e-5
        assert differences["without_gradient"] == differences["ignored"] == 0
        assert differences["gradient"] < rounding.get(name, 1e-5)
        assert differences["smallest"] < 0.2  # of probabilities from 1e-9, which float16 alone does not hold


def test_kernel_compiles_for_volta_to_blackwell() -> None:
    sizes = run_program("compile_loss_kernel.py")
    assert {name.split()[0] for name in sizes} == {"sm_70", "sm_75", "sm_80", "sm_90", "sm_120"}
    assert min(sizes.values()) > 1000
