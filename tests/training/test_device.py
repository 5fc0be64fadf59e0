"""What `auto` means where, and that bfloat16 is not emulated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import RunSweep

from raylm.errors import UserError
from raylm.numerics import CPU_BFLOAT16_FLAGS
from raylm.training.device import resolve_precision


@pytest.mark.parametrize("name", CPU_BFLOAT16_FLAGS)
def test_a_processor_with_bfloat16_uses_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, name: True})
    named = ("auto", "bfloat16", "float32")
    assert [resolve_precision(asked, "cpu") for asked in named] == ["bfloat16", "bfloat16", "float32"]


def test_a_processor_without_bfloat16_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    assert [resolve_precision(asked, "cpu") for asked in ("auto", "float32")] == ["float32", "float32"]
    with pytest.raises(UserError, match=r"bfloat16 would be emulated.*avx512_bf16.*expected float32, or auto"):
        resolve_precision("bfloat16", "cpu")


@pytest.mark.slow
def test_a_sweep_is_refused_before_ray_is_started(run_sweep: RunSweep, small_text: Path, tmp_path: Path) -> None:
    if resolve_precision("auto", "cpu") == "bfloat16":
        pytest.skip("this processor has bfloat16")
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
