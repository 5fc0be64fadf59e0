"""Path of Apple's GPU on a stand-in: tensors on `mps` that the host computes, without float64, with their generator."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_mps import stand_in

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "fake_mps_trial.py"
pytestmark = pytest.mark.skipif(not stand_in.can_install(), reason="needs Linux, g++ and a build of torch for CPUs")


def test_a_trial_on_apple_gpu_has_the_losses_of_a_cpu_and_resumes_and_recomputes_bit_for_bit(tmp_path: Path) -> None:
    """AdamW's trial has dropout, whose masks are drawn by the GPU's own generator."""
    done = subprocess.run([sys.executable, str(PROGRAM), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["device"], len(result["names"])) == ("mps", 1)
    for optimizer in ("adafactor", "adamw"):
        trial = result[optimizer]
        assert trial["recomputed"] == trial["mps"]
        assert trial["resumed"] == trial["mps"][2:]
    assert result["adafactor"]["mps"] == pytest.approx(result["adafactor"]["cpu"], abs=1e-4)
    assert result["adamw"]["mps"] == pytest.approx(result["adamw"]["cpu"], abs=0.05)  # other masks
    assert result["adamw"]["mps"] != result["adamw"]["cpu"]
    assert result["missing"] == ["_linalg_svd.U"]  # which no trial uses
    for saved in result["saved"]:  # by a layer for its backward pass
        assert saved["planned"] == pytest.approx(saved["counted"], rel=0.02)
