"""Trials on cards of several sizes keep to the memory that the plan gives them; `cards.py` runs all sizes."""

from __future__ import annotations

import pytest
import torch

from gpu.cards import run_cell
from gpu.step_counts import GIB
from raylm.config.trial import TrialConfig


@pytest.mark.parametrize(
    ("model", "context_length", "card_gib"), [("gpt2", 1024, 11), ("gpt2-large", 1024, 11), ("gpt2-xl", 256, 16)]
)
def test_a_trial_runs_on_a_card_with_the_micro_batch_of_the_plan(
    model: str, context_length: int, card_gib: int
) -> None:
    if torch.cuda.mem_get_info()[1] < card_gib * GIB:
        pytest.skip(f"needs a GPU of {card_gib} GiB")
    config = TrialConfig(model=model, context_length=context_length, batch_size=64, dropout=0.1)
    result, planned, held = run_cell(config, card_gib)
    assert result.startswith("micro-batch") and 0.95 * planned < held < card_gib


def test_a_trial_that_fits_no_card_of_a_size_is_refused() -> None:
    assert run_cell(TrialConfig(model="gpt2-xl", context_length=256, batch_size=64), 11)[0] == "refused"
