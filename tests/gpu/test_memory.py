"""Trials that run out of GPU memory, and shares of a GPU; the limit is that of torch's allocator."""

from __future__ import annotations

import gc

import pytest
import torch
from fake_cuda.trial import random_corpus

from gpu.trials import OPTIONS, make_config, train
from raylm.results.progress import MicroBatching
from raylm.training.device import limit_gpu_memory
from raylm.training.models import ModelSource
from raylm.training.options import ExecutionOptions
from raylm.training.train import Evaluation

MIB = 2**20


def limit_to(num_bytes: float) -> None:
    """Limit this process to a number of bytes of GPU memory."""
    gc.collect()
    torch.cuda.empty_cache()
    limit_gpu_memory(num_bytes / torch.cuda.mem_get_info()[1], 0)


def measure_peak(gpt2: ModelSource, options: ExecutionOptions) -> int:
    """Return the most bytes that torch's allocator held for the trial of these tests."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    config = make_config()
    train(config, random_corpus(config, 2 * config.batch_size), gpt2, options=options)
    return torch.cuda.max_memory_reserved()


@pytest.fixture(scope="module")
def peaks(gpt2: ModelSource) -> dict[MicroBatching, int]:
    """Peak memory of the trial with some micro-batchings."""
    micro_batchings = MicroBatching(8), MicroBatching(2), MicroBatching(1, recompute=True)
    return {size: measure_peak(gpt2, ExecutionOptions("cuda", "bfloat16", size)) for size in micro_batchings}


def test_a_first_step_without_enough_memory_runs_with_smaller_micro_batches(
    gpt2: ModelSource, peaks: dict[MicroBatching, int]
) -> None:
    config = make_config()
    limit_to((peaks[MicroBatching(8)] + peaks[MicroBatching(2)]) / 2)
    observed = train(config, random_corpus(config, 20 * config.batch_size), gpt2)
    assert observed.reductions[:1] == [MicroBatching(4)]
    assert observed.progress is not None and observed.progress.micro_batching == observed.reductions[-1]
    assert observed.evaluations[-1].step == 20


def test_a_middle_step_without_enough_memory_is_repeated_with_smaller_micro_batches(
    gpt2: ModelSource, peaks: dict[MicroBatching, int]
) -> None:
    config = make_config(evals_per_epoch=2)
    limit = (peaks[MicroBatching(8)] + peaks[MicroBatching(2)]) / 2

    def take_memory(evaluation: Evaluation) -> None:
        if evaluation.trainer.progress.step == 20:
            limit_to(limit)

    observed = train(config, random_corpus(config, 40 * config.batch_size), gpt2, on_evaluation=take_memory)
    assert observed.reductions[:1] == [MicroBatching(4)]
    assert [metrics.step for metrics in observed.evaluations] == [20, 40]
    assert observed.evaluations[-1].tokens_seen == 2 * observed.evaluations[0].tokens_seen - 255 + 255 // 2


def test_the_smallest_micro_batches_recompute_activations(gpt2: ModelSource, peaks: dict[MicroBatching, int]) -> None:
    config = make_config()
    limit_to(peaks[MicroBatching(1, recompute=True)] + 16 * MIB)
    observed = train(config, random_corpus(config, 3 * config.batch_size), gpt2)
    assert observed.reductions[-1] == MicroBatching(1, recompute=True)


def test_a_trial_that_no_micro_batching_fits_ends_with_the_error(
    gpt2: ModelSource, peaks: dict[MicroBatching, int]
) -> None:
    config = make_config()
    limit_to(peaks[MicroBatching(1, recompute=True)] / 2)
    with pytest.raises(torch.OutOfMemoryError):
        train(config, random_corpus(config, config.batch_size), gpt2)


def test_a_share_of_a_gpu_is_a_limit_of_the_process() -> None:
    limit_gpu_memory(0.5, 600 * MIB)
    total = torch.cuda.mem_get_info()[1]
    half = torch.empty(total // 2 - 700 * MIB, dtype=torch.uint8, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(200 * MIB, dtype=torch.uint8, device="cuda")
    del half


def test_a_trial_leaves_no_memory_behind(gpt2: ModelSource) -> None:
    config = make_config(context_length=64)
    train(config, random_corpus(config, 15 * config.batch_size), gpt2, options=OPTIONS)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= 65 * MIB  # a workspace of cuBLAS
