"""Spread of a trial's losses over instruction sets, numbers of threads and precisions, as docs/numbers.md states it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "train_on_this_cpu.py"
CAPABILITIES = ("default", "avx2", "avx512")
"""Values of $ATEN_CPU_CAPABILITY, each a superset of the one before."""
THREADS = "1,2,4"
MAX_SPREAD = {"float32": 1e-5, "bfloat16": 2e-4}
"""Highest difference of two losses of one precision, relative; 7e-7 and 5e-5 were measured."""
MAX_BFLOAT16_DIFFERENCE = 3e-4
"""Highest difference of a loss in bfloat16 from one in float32, relative; 5e-5 was measured."""


def train_on(capability: str, dataset: Path) -> dict[str, list[float]]:
    """Return the losses of a trial with an instruction set, by precision and number of threads."""
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(dataset), THREADS],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=True,
    )
    content = json.loads(done.stdout.splitlines()[-1])
    assert content["capability"] == capability.upper()
    losses: dict[str, list[float]] = content["losses"]
    return losses


def spread(losses: list[list[float]], others: list[list[float]]) -> float:
    """Return the highest relative difference between losses of the same kind."""
    return max(
        abs(a - b) / a for one, other in itertools.product(losses, others) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.nightly
def test_losses_depend_on_the_processor_no_more_than_their_precision_says(small_text: Path) -> None:
    native = CAPABILITIES.index(torch.backends.cpu.get_cpu_capability().lower())
    losses: dict[str, list[list[float]]] = {name: [] for name in MAX_SPREAD}
    for capability in CAPABILITIES[: native + 1]:
        for key, values in train_on(capability, small_text).items():
            losses[key.split()[0]].append(values)
    assert {len(values) for values in losses.values()} == {(native + 1) * 3}
    for precision, limit in MAX_SPREAD.items():
        assert 0 < spread(losses[precision], losses[precision]) < limit
    assert spread(losses["float32"], losses["bfloat16"]) < MAX_BFLOAT16_DIFFERENCE
