"""Batches gathered on a device equal those of `Windows.get_batch`, for every integer type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.data.corpus import Windows
from raylm.training.batches import Batches, gather_batch, to_signed_tensor


@settings(derandomize=True, deadline=None)
@given(
    num_tokens=st.integers(1, 300),
    context_length=st.integers(2, 40),
    dtype=st.sampled_from([np.uint8, np.uint16, np.uint32]),
    data=st.data(),
)
def test_gathered_windows_equal_those_of_get_batch(
    num_tokens: int, context_length: int, dtype: type[np.unsignedinteger], data: st.DataObject
) -> None:
    largest = int(np.iinfo(dtype).max)  # the upper half is negative in the signed type
    tokens = np.random.default_rng(num_tokens).integers(0, largest, num_tokens, dtype=dtype, endpoint=True)
    windows = Windows(tokens, context_length, start_token_id=largest)
    indices = np.array(data.draw(st.lists(st.integers(0, len(windows) - 1), max_size=9)), dtype=np.int64)
    expected = windows.get_batch(indices)
    for batch in (
        gather_batch(windows, to_signed_tensor(windows), indices),
        Batches(windows, torch.device("cpu")).get(indices),
    ):
        for tensor, array in zip(batch, expected, strict=True):
            assert tensor.dtype == torch.int64
            assert np.array_equal(tensor.numpy(), array)


def test_signed_tokens_take_no_more_memory() -> None:
    windows = Windows(np.array([0, 50_256, 40_000], dtype=np.uint16), 2, start_token_id=50_256)
    assert to_signed_tensor(windows).nbytes == 6
    assert gather_batch(windows, to_signed_tensor(windows), np.array([2, 1]))[0].tolist() == [
        [50_256, 40_000],
        [50_256, 50_256],
    ]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_windows_on_a_gpu_equal_those_of_get_batch() -> None:
    tokens = np.random.default_rng(0).integers(0, 50_257, 10_000).astype(np.uint16)
    windows = Windows(tokens, 129, start_token_id=50_256)
    indices = np.array([len(windows) - 1, 3, 0])
    for tensor, array in zip(
        Batches(windows, torch.device("cuda")).get(indices), windows.get_batch(indices), strict=True
    ):
        assert np.array_equal(tensor.cpu().numpy(), array)
