"""Share of a GPU that a trial has: its process is limited to it while it trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from raylm.training import device
from raylm.tuning import trainable


@pytest.mark.parametrize(("share", "limit"), [(0.5, 0.5 - 600 / 2**14), (1.0, 1.0), (0.01, 0.0)])
def test_a_trial_is_limited_to_its_share_of_a_gpu_and_the_next_one_to_its_own(
    share: float, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share of a GPU of 16 GiB includes the CUDA context, so that two halves fit."""
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**33, 2**34))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(device, "set_allocator_options", lambda: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    context = SimpleNamespace(device="cuda", gpus_per_rank=share, threads_per_rank=1, memory_fraction=1.0)
    with trainable._limit_memory(cast(Any, context), "run"):
        assert fractions == [pytest.approx(limit)]
