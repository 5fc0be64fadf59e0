"""Precision that `auto` resolves to, and the refusal of emulated ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import RunSweep

from raylm import numerics
from raylm.errors import UserError
from raylm.numerics import CPU_BFLOAT16_FLAGS, HALF_PRECISIONS
from raylm.planning import devices
from raylm.training import device
from raylm.training.device import half_precisions, resolve_precision

SetFlags = Callable[..., None]


@pytest.fixture(autouse=True)
def _no_onednn_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in numerics.ONEDNN_ISA_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def set_cpu_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetFlags:
    """Function that gives this processor other instructions."""

    def set_flags(*flags: str) -> None:
        (tmp_path / "cpuinfo").write_text(f"flags\t\t: fpu {' '.join(flags)}\n")
        monkeypatch.setattr(numerics, "CPUINFO_FILE", tmp_path / "cpuinfo")

    return set_flags


@pytest.mark.parametrize("flag", CPU_BFLOAT16_FLAGS)
def test_auto_is_bfloat16_on_a_processor_that_has_it(set_cpu_flags: SetFlags, flag: str) -> None:
    set_cpu_flags("avx2", flag)
    requests = ("auto", "bfloat16", "float32")
    assert [resolve_precision(requested, "cpu") for requested in requests] == ["bfloat16", "bfloat16", "float32"]


def test_bfloat16_is_refused_on_a_processor_without_it(set_cpu_flags: SetFlags) -> None:
    set_cpu_flags("avx2")
    assert [resolve_precision(requested, "cpu") for requested in ("auto", "float32")] == ["float32", "float32"]
    with pytest.raises(UserError, match=r"bfloat16 would be emulated.*avx512_bf16.*expected float32, or auto"):
        resolve_precision("bfloat16", "cpu")


def test_bfloat16_is_not_used_on_a_mac(set_cpu_flags: SetFlags, monkeypatch: pytest.MonkeyPatch) -> None:
    """M2 and later have it, but torch's products in it are slower there than in float32."""
    set_cpu_flags("bf16")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert resolve_precision("auto", "cpu") == "float32"
    with pytest.raises(UserError, match=r"bfloat16 would be emulated on this Mac"):
        resolve_precision("bfloat16", "cpu")


def test_float16_is_refused_on_a_processor() -> None:
    with pytest.raises(UserError, match=r"float16 would be emulated on a processor; it is for GPUs; expected float32"):
        resolve_precision("float16", "cpu")


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 1), ()), ((7, 0), ("float16",)), ((7, 5), ("float16",)), ((8, 0), HALF_PRECISIONS)],
)
def test_gpus_train_in_the_precision_of_their_units(
    capability: tuple[int, int], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=capability[0]))
    assert half_precisions("cuda") == expected
    default = expected[0] if expected else "float32"
    assert resolve_precision("auto", "cuda") == default
    for precision in HALF_PRECISIONS:
        if precision in expected:
            assert resolve_precision(precision, "cuda") == precision
        else:
            message = f"{precision} would be emulated on Tesla T4 of .*expected float32, or auto, which is {default}"
            with pytest.raises(UserError, match=message):
                resolve_precision(precision, "cuda")


@pytest.mark.parametrize("variable", [None, *device.ALLOCATOR_VARIABLES])
def test_memory_of_a_gpu_is_held_in_segments_that_grow_unless_the_user_decides(
    variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", options.append, raising=False)
    for name in device.ALLOCATOR_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "max_split_size_mb:64")
    device.set_allocator_options()
    assert options == ([] if variable else ["expandable_segments:True"])


def test_plan_and_training_agree_about_this_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    assert numerics.cpu_has_bfloat16() == ("bfloat16" in half_precisions("cpu"))
    devices.measure_cpu.cache_clear()
    assert devices.resolve_precision("auto", devices.measure_cpu()) == resolve_precision("auto", "cpu")
    devices.measure_cpu.cache_clear()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert not numerics.cpu_has_bfloat16() and not half_precisions("cpu")


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="torch 2.8 does not tell them")
def test_flags_of_this_processor_are_those_that_torch_sees() -> None:
    capabilities = torch.cpu.get_capabilities()
    assert numerics.cpu_has_bfloat16() == any(capabilities.get(flag) for flag in CPU_BFLOAT16_FLAGS)


def test_sweep_with_emulated_bfloat16_is_refused_before_ray_starts(
    run_sweep: RunSweep, small_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    file = tmp_path / "half.py"
    space = {"dataset": str(small_text), "model": "gpt2-nano", "context_length": 32}
    file.write_text(
        "from raylm import Resources, Sweep\n"
        f"sweep = Sweep(name='half', space={space!r}, precision='bfloat16', resources=Resources(cpus=1, gpus=0))\n"
    )
    done = run_sweep(file)
    assert done.returncode == 2, done.stderr
    assert "bfloat16 would be emulated on this processor" in done.stderr
    assert "dashboard" not in done.stdout  # Ray has not started
    assert not list((tmp_path / "runs" / "half").rglob("model.safetensors"))
