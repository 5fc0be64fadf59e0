"""Triton kernels of Adafactor: numbers in Triton's interpreter, and binaries for GPUs that are not there."""

from __future__ import annotations

import pytest
from triton_programs import run_program

from raylm.planning.gpu_time import UPDATE_TRAFFIC_BYTES

pytest.importorskip("triton")


def test_clipped_steps_equal_those_of_torch_and_move_the_bytes_that_are_planned() -> None:
    results = run_program("adafactor_kernel_numbers.py")
    moved = results.pop("bytes")
    assert moved == pytest.approx(UPDATE_TRAFFIC_BYTES["adafactor"], abs=0.5)
    assert results.pop("infinite gradients are skipped") is True
    assert results.keys() == {"gpt2, clipped", "odd shapes, clipped", "odd shapes"}
    for differences in results.values():
        assert differences["parameters"] < 2e-5  # of the learning rate
        assert differences["moments"] < 5e-6  # relative; the error of the norm that torch sums on a CPU is 2e-6


def test_kernels_compile_for_volta_to_blackwell_and_read_16_bytes_at_once() -> None:
    compiled = run_program("compile_kernels.py", "adafactor")
    assert compiled.keys() == {"sm_70", "sm_75", "sm_80", "sm_90", "sm_120"}
    for kernels in compiled.values():
        assert len(kernels) == 7 and all(kernel["bytes"] > 1000 for kernel in kernels.values())
        assert min(kernels[name]["reads"] for name in ("sum_squares", "square_updates", "update_matrices")) >= 8
