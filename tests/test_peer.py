"""Fine-tuning works, and means the same as in transformers' Trainer: bench/vs_trainer.py on real text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).resolve().parents[1] / "bench" / "vs_trainer.py"


def test_wikitext2_is_learnt_as_by_transformers_trainer(hub_environment: dict[str, str]) -> None:
    command = [sys.executable, str(SCRIPT), "--dataset", "wikitext2", "--max-train-tokens", "200000"]
    env = {**hub_environment, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["raylm_val_loss"] == pytest.approx(measured["trainer_val_loss"], abs=0.02)
    assert measured["raylm_val_loss"] < measured["unigram_val_loss"] - 0.1
