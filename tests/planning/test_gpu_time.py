"""Time of a step on a GPU by its parts: rates that are published, bounds, and when compiling pays."""

from __future__ import annotations

from typing import Any

import pytest

from raylm import TrialConfig
from raylm.config.catalog import MODELS
from raylm.planning import gpu_time, throughput
from raylm.planning.gpu_time import GpuTimeModel
from raylm.planning.memory import MemoryModel
from raylm.results.progress import MicroBatching


def time_model(
    model: str = "gpt2",
    context_length: int = 1024,
    batch_size: int = 64,
    gpu: str = "h100",
    ranks: int = 1,
    recompute: bool = False,
    **fields: Any,
) -> GpuTimeModel:
    """Return the time model of a trial in bfloat16, whose batch is a single micro-batch."""
    config = TrialConfig(
        model=model, context_length=context_length, batch_size=batch_size, **{"dropout": 0.0, **fields}
    )
    memory_model = MemoryModel(MODELS[model].shape, config, "cuda", "bfloat16", ranks)
    micro_batching = MicroBatching(memory_model.max_rank_windows, recompute)
    return GpuTimeModel(throughput.parse_gpu(gpu)[0], memory_model, micro_batching)


def tokens_per_second(compiled: bool = False, **cell: Any) -> float:
    model = time_model(**cell)
    tokens = model.memory_model.config.batch_size * model.memory_model.config.context_length
    return tokens / model.step_time(compiled=compiled).seconds()


def test_ceilings_lie_beside_the_published_rates_of_llm_c() -> None:
    """llm.c: 468,000 tokens/s of gpt2 and 46,800 of gpt2-xl on an H100, 218,500 of gpt2 on each A100 80GB."""
    assert 560_000 < tokens_per_second(compiled=True) < 1.25 * 468_000
    assert 51_000 < tokens_per_second(model="gpt2-xl", batch_size=16, compiled=True) < 1.25 * 46_800
    assert tokens_per_second(gpu="a100-80gb", compiled=True) == pytest.approx(218_500, rel=0.1)
    assert 240_000 < tokens_per_second(batch_size=8, context_length=256) < 350_000


def test_the_host_bounds_a_small_step_that_no_graph_launches() -> None:
    alone, of_two = (time_model(batch_size=8 * ranks, context_length=256, ranks=ranks).step_time() for ranks in (1, 2))
    assert of_two.gpu == alone.gpu < of_two.host == of_two.seconds() and of_two.host > 12 * alone.host
    assert alone.seconds() == alone.gpu and alone.seconds(gpu_fraction=0.5) == 2 * alone.gpu
    recomputed = time_model(batch_size=8, context_length=256, recompute=True).step_time()
    assert recomputed.host == of_two.host and 1.2 < recomputed.products / alone.products < 4 / 3


def test_compiling_is_chosen_by_the_gpu_time_that_it_saves() -> None:
    def min_steps(**cell: Any) -> int:
        steps = time_model(**cell).min_steps_to_compile()
        assert steps is not None
        return steps

    assert min_steps(model="gpt2-xl", batch_size=16) < 2000 < min_steps() < 5000 < min_steps(batch_size=8)
    assert min_steps(batch_size=8, context_length=256) > 50_000, "the kernels of a small step take little time"
    assert min_steps(gpu="a100-80gb") < min_steps() < min_steps(gpu="h200"), "a slower memory, more saved"
    bounded = time_model(batch_size=16, context_length=256, ranks=2)
    assert bounded.min_steps_to_compile() is None, "the host is slower than the GPU"


def test_the_time_of_a_long_trial_has_that_of_compiling_once() -> None:
    model, tokens = time_model(), 64 * 1024
    steps = model.min_steps_to_compile()
    assert steps is not None
    plain, compiled = (model.step_time(compiled=value).seconds() for value in (False, True))
    assert model.training_seconds(tokens * (steps - 1), steps - 1) == pytest.approx((steps - 1) * plain)
    assert model.training_seconds(tokens * steps, steps) == pytest.approx(steps * compiled + gpu_time.COMPILE_SECONDS)
    assert model.training_seconds(tokens, 1, total_steps=steps) > gpu_time.COMPILE_SECONDS
    assert model.training_seconds(tokens * steps, steps) <= steps * plain


def test_trials_on_a_gpu_of_unknown_rates_are_compiled_if_they_are_long() -> None:
    model = time_model()
    of_h100, unknown = (
        gpu_time.min_steps_to_compile(name, model.memory_model, model.micro_batching, 1.0)
        for name in ("NVIDIA H100 80GB HBM3", "NVIDIA A40")
    )
    assert of_h100 == model.min_steps_to_compile()
    assert unknown == gpu_time.MIN_STEPS_TO_COMPILE
