"""Plan accuracy on GPT-2 at its true shape, by bench/plan_accuracy.py."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from raylm.config.catalog import MODELS

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "plan_accuracy.py"
PARAMETERS = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
"""Numbers of parameters in transformers, the head tied to the embedding."""


@pytest.mark.parametrize(("model", "parameters"), PARAMETERS.items())
def test_catalog_has_the_parameters_of_each_size(model: str, parameters: int) -> None:
    assert MODELS[model].shape.num_parameters == parameters


@pytest.mark.nightly
def test_gpt2_learns_from_the_first_step_within_the_estimated_memory(hub_env: dict[str, str]) -> None:
    command = [sys.executable, str(SCRIPT), "--one", "gpt2:256:8", "--steps", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=hub_env)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout.splitlines()[-1])
    assert measured["parameters"] == PARAMETERS["gpt2"]
    first, second = measured["losses"]
    assert first == pytest.approx(math.log(50257), abs=0.2)
    assert second < first - 0.5
    assert measured["peak_gib"] == pytest.approx(measured["predicted_gib"], rel=0.1)
