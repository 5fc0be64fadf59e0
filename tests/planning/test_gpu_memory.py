"""Peak memory on a GPU: the plan against trials on fake CUDA tensors, and cards of all sizes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import guard

from raylm import TrialConfig
from raylm.config.catalog import MODELS
from raylm.planning.memory import MAX_MEMORY_FRACTION, RUNTIME_BASELINE_BYTES, USABLE_MEMORY_FRACTION, MemoryModel
from raylm.results.progress import MicroBatching
from raylm.units import GIB

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "fake_cuda_memory.py"
SIZES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
CARDS = {"11 GB": 10.6, "16 GB": 15.6, "24 GB": 22.0, "40 GB": 39.4, "48 GB": 44.4, "80 GB": 79.2}
"""Memory of cards in GiB, as torch reports it."""
CELLS = [
    ["gpt2", 256, 8, 8, False, "bfloat16", "adafactor", 0.0],
    ["gpt2", 1024, 8, 8, True, "bfloat16", "adafactor", 0.0],
    ["gpt2", 1024, 4, 1, False, "float32", "adamw", 0.0],
    ["gpt2", 512, 16, 8, False, "bfloat16", "adamw", 0.1],
    ["gpt2-medium", 1024, 8, 8, True, "float32", "adafactor", 0.0],
    ["gpt2-medium", 512, 8, 8, False, "float32", "adafactor", 0.1],
    ["gpt2-medium", 256, 4, 2, True, "bfloat16", "adafactor", 0.0],
    ["gpt2-large", 512, 2, 1, True, "bfloat16", "adafactor", 0.0],
    ["gpt2-large", 1024, 8, 8, False, "bfloat16", "adafactor", 0.0],
    ["gpt2-xl", 256, 8, 8, False, "bfloat16", "adafactor", 0.0],
    ["gpt2-xl", 1024, 8, 8, True, "bfloat16", "adafactor", 0.0],
    ["gpt2-xl", 256, 2, 1, False, "float32", "adafactor", 0.0],
]
"""Arguments of the program without a limit: all sizes, contexts, precisions, optimizers, whole and divided batches."""


def memory_model(model: str, context_length: int, batch_size: int = 8, optimizer: str = "adafactor") -> MemoryModel:
    config = TrialConfig(
        model=model, context_length=context_length, batch_size=batch_size, optimizer=optimizer, dropout=0.0
    )
    return MemoryModel(MODELS[model].shape, config, "cuda", "bfloat16")


def run_cells(cells: list[list[Any]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps(cells)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(not guard.can_build(), reason="needs Linux, g++ and torch without CUDA")
def test_plan_is_within_5_percent_below_and_15_above_the_memory_of_all_tensors() -> None:
    """Earlier plans were 18 % too low for gpt2 recomputed and 40 % too high for gpt2-xl at context 256."""
    too_small = int(0.9 * (memory_model("gpt2", 1024).peak_bytes(MicroBatching(8)) - RUNTIME_BASELINE_BYTES["cuda"]))
    limited = ["gpt2", 1024, 8, 8, False, "bfloat16", "adafactor", 0.0, too_small]
    *results, fell_back = run_cells([*([*cell, None] for cell in CELLS), limited])
    ratios = {json.dumps(result["cell"]): result["planned"] / result["tracked"] for result in results}
    assert all(0.95 <= ratio <= 1.15 for ratio in ratios.values()), ratios
    assert fell_back["smaller"] == [[3, False]] and fell_back["tracked"] <= too_small


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_trials_fit_their_card_by_the_plan_or_are_refused(card: str, optimizer: str) -> None:
    available = CARDS[card] * GIB
    for model, context_length, batch_size in itertools.product(SIZES, (256, 512, 1024), (2, 8, 64)):
        work = memory_model(model, context_length, batch_size, optimizer)
        chosen = work.choose_micro_batching(available)
        peak, least = work.peak_bytes(chosen), work.min_bytes()
        if (excess := work.describe_excess(available)) is not None:
            assert least > available * MAX_MEMORY_FRACTION
            assert f"{model} at context length {context_length:,}" in excess and f"has {CARDS[card]:.1f} GiB" in excess
        else:
            assert peak <= available * USABLE_MEMORY_FRACTION or peak == least <= available * MAX_MEMORY_FRACTION


def test_only_gpt2_xl_with_adamw_and_small_cards_are_refused() -> None:
    refused = {
        (model, optimizer, card)
        for model, optimizer, (card, gib) in itertools.product(SIZES, ("adafactor", "adamw"), CARDS.items())
        if memory_model(model, 256, optimizer=optimizer).describe_excess(gib * GIB)
    }
    assert refused == {
        ("gpt2-large", "adamw", "11 GB"),
        ("gpt2-xl", "adafactor", "11 GB"),
        *(("gpt2-xl", "adamw", card) for card in ("11 GB", "16 GB", "24 GB")),
    }


@pytest.mark.parametrize(("model", "context_length", "batch_size"), [("gpt2", 1024, 64), ("gpt2-xl", 256, 8)])
def test_each_fallback_needs_less_than_the_one_before_until_none_does(
    model: str, context_length: int, batch_size: int
) -> None:
    work = memory_model(model, context_length, batch_size)
    used: MicroBatching | None = MicroBatching(batch_size)
    peaks, splits = [], []
    while used is not None:
        peaks.append(work.peak_bytes(used))
        splits.append(used)
        used = work.next_smaller(used)
    assert peaks == sorted(set(peaks), reverse=True) and peaks[-1] == work.min_bytes() and len(peaks) < 12
    assert [split.recompute for split in splits] == sorted(split.recompute for split in splits)
    if model == "gpt2-xl":
        assert splits == [MicroBatching(8), MicroBatching(8, recompute=True)]
