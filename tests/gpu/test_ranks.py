"""Two ranks of a trial on two GPUs, each of which sees its own, without Ray."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from fake_cuda.trial import random_corpus

from gpu.counters import IS_FAKE, count
from gpu.trials import OPTIONS, make_config, train
from raylm.training import models
from raylm.training.distributed import create_store, join_process_group

STEPS = 20


def show_gpu(number: str) -> None:
    """Let this process see one GPU only, as Ray does; before it uses CUDA."""
    os.environ.update(CUDA_VISIBLE_DEVICES=number, FAKE_GPU_COUNT="2")


def run_rank(rank: int, port: int) -> tuple[int, list[float], int]:
    """Train as one rank; return the steps, the losses and the collectives of NCCL (0 on a real GPU)."""
    show_gpu(str(rank))
    source = models.resolve_model("gpt2-nano", pretrained=True)
    config = make_config(model="gpt2-nano", context_length=64)
    corpus = random_corpus(config, STEPS * config.batch_size, vocab_size=500)
    with count() as counts, join_process_group(rank, 2, "cuda", port) as dist_context:
        observed = train(config, corpus, source, options=OPTIONS, dist_context=dist_context)
    (metrics,) = observed.evaluations
    collectives = sum(number for name, number in counts.names.items() if name == "nccl: all-reduce")
    return metrics.step, [metrics.train_loss, metrics.val_loss], collectives


@pytest.mark.skipif(not IS_FAKE and torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks_average_their_gradients() -> None:
    store = create_store()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        first, second = [pool.submit(run_rank, rank, store.port) for rank in range(2)]
        results = first.result(timeout=300), second.result(timeout=300)
    assert [steps for steps, _, _ in results] == [STEPS, STEPS]
    assert results[0][1] == pytest.approx(results[1][1], abs=1e-9)
    if IS_FAKE:
        assert all(collectives >= STEPS for _, _, collectives in results)
