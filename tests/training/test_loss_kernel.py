"""Triton kernel of the loss: its numbers in Triton's interpreter, and its binaries for GPUs that are not there."""

from __future__ import annotations

import pytest
from triton_programs import run_program

pytest.importorskip("triton")


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
    compiled = run_program("compile_kernels.py", "loss")
    assert compiled.keys() == {"sm_70", "sm_75", "sm_80", "sm_90", "sm_120"}
    assert all(kernel["bytes"] > 1000 for kernels in compiled.values() for kernel in kernels.values())
