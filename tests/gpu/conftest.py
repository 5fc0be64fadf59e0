"""Tests of the CUDA path: collected only in an environment of scripts/test-gpu, which has a GPU or the fake one.

Torch's CPU build, which the other tests run with, can run none of them; tests/fake_cuda holds what it can.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_cuda.trial import write_config

from gpu.counters import IS_FAKE
from gpu.fake_gpu import DEVICE_VARIABLE
from raylm.training.device import limit_gpu_memory, set_allocator_options
from raylm.training.models import ModelSource

collect_ignore_glob = [] if os.environ.get(DEVICE_VARIABLE) else ["test_*.py"]


@pytest.fixture(scope="session", autouse=True)
def _allocator() -> None:
    """Set the options with which workers run; before the first allocation."""
    set_allocator_options()


@pytest.fixture(autouse=True)
def _whole_gpu() -> Iterator[None]:
    """Leave the whole GPU to each test."""
    gc.collect()  # tracebacks of a test before
    torch.cuda.empty_cache()
    yield
    limit_gpu_memory(1, 0)
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def gpt2() -> Iterator[ModelSource]:
    """GPT-2 of its own size, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        yield write_config("gpt2", Path(folder))


needs_numbers = pytest.mark.skipif(IS_FAKE, reason="the fake GPU computes no numbers")
