"""Trials on one GPU: work per step, evaluation, resume, recomputed and compiled blocks, numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_cuda.trial import random_corpus

from gpu.conftest import needs_numbers
from gpu.counters import count_allocations
from gpu.step_counts import measure
from gpu.trials import OPTIONS, Observed, make_config, train
from raylm.results.progress import MicroBatching
from raylm.training.models import ModelSource
from raylm.training.options import ExecutionOptions
from raylm.training.trainer import Trainer

BFLOAT16_ERROR = 0.02
"""Nats by which losses of random weights may differ from those in float32 on the CPU."""
MAX_KERNELS = {"adafactor": 900, "adamw": 850}
"""Kernels per step of gpt2 at 8 x 256; one parameter at a time, Adafactor alone launches 2,786."""


@pytest.mark.parametrize("optimizer", MAX_KERNELS)
def test_a_step_launches_few_kernels_and_the_host_rarely_waits(optimizer: str) -> None:
    counts = measure(make_config(optimizer=optimizer), OPTIONS)
    assert counts.kernels <= MAX_KERNELS[optimizer], counts.total.names
    assert counts.waits <= 0.1, counts.total.names
    assert counts.total.graph_launches in (None, counts.steps)


def test_steps_in_float16_accumulated_and_recomputed_keep_to_their_budgets() -> None:
    scaled = measure(make_config(), ExecutionOptions("cuda", "float16"))
    accumulated = measure(make_config(), ExecutionOptions("cuda", "bfloat16", MicroBatching(4)))
    recomputed = measure(make_config(), ExecutionOptions("cuda", "bfloat16", MicroBatching(8, recompute=True)))
    assert scaled.kernels <= 950 and accumulated.kernels <= 1800 and recomputed.kernels <= 1200
    assert max(accumulated.waits, recomputed.waits) <= 0.1
    assert scaled.waits <= 0.2  # for the losses and for the scale
    assert scaled.total.graph_launches in (None, scaled.steps)
    assert recomputed.peak_allocated < accumulated.peak_allocated


def test_no_step_after_the_third_allocates(gpt2: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    allocations: list[int] = []
    run_step = Trainer._optimizer_step

    def step(trainer: Trainer, *arguments: Any) -> Any:
        result = run_step(trainer, *arguments)
        allocations.append(count_allocations())
        return result

    monkeypatch.setattr(Trainer, "_optimizer_step", step)
    config = make_config()
    train(config, random_corpus(config, 20 * config.batch_size), gpt2)
    assert len(allocations) == 20
    assert len(set(allocations[2:])) == 1, allocations


@pytest.mark.parametrize("optimizer", MAX_KERNELS)
def test_a_resumed_trial_ends_as_an_uninterrupted_one(optimizer: str, gpt2: ModelSource, tmp_path: Path) -> None:
    config = make_config(optimizer=optimizer, evals_per_epoch=2, context_length=64)
    corpus = random_corpus(config, 40 * config.batch_size)
    whole = train(config, corpus, gpt2)
    first = train(config, corpus, gpt2, save_first_to=tmp_path)
    resumed = train(config, corpus, gpt2, resume_from=tmp_path)
    assert [metrics.step for metrics in (*first.evaluations, *resumed.evaluations)] == [20, 40]
    assert resumed.devices == whole.devices == {"cuda"}
    for metrics, expected in zip((*first.evaluations, *resumed.evaluations), whole.evaluations, strict=True):
        assert metrics.train_loss == pytest.approx(expected.train_loss, abs=BFLOAT16_ERROR)
        assert metrics.val_loss == pytest.approx(expected.val_loss, abs=BFLOAT16_ERROR)


@pytest.mark.parametrize("fields", [{}, {"dropout": 0.1}], ids=["without dropout", "with dropout"])
def test_compiled_blocks_train_and_evaluate(fields: dict[str, Any], gpt2: ModelSource) -> None:
    config = make_config(context_length=64, evals_per_epoch=2, **fields)
    corpus = random_corpus(config, 16 * config.batch_size)
    compiled: list[bool] = []
    options = ExecutionOptions("cuda", "bfloat16", min_steps_to_compile=1)
    observed = train(
        config, corpus, gpt2, options=options, on_evaluation=lambda e: compiled.append(e.trainer.is_compiled)
    )
    assert compiled == [True, True]
    assert [metrics.step for metrics in observed.evaluations] == [8, 16]


@needs_numbers
@pytest.mark.parametrize(
    "options",
    [
        ExecutionOptions("cuda", "float32"),
        OPTIONS,
        ExecutionOptions("cuda", "float16"),
        ExecutionOptions("cuda", "bfloat16", MicroBatching(3)),
        ExecutionOptions("cuda", "bfloat16", MicroBatching(8, recompute=True)),
    ],
    ids=["float32", "bfloat16", "float16", "micro-batches", "recomputed"],
)
def test_losses_are_those_of_the_cpu(
    options: ExecutionOptions, cpu_losses: Observed, gpt2: ModelSource, numbers_trial: Callable[..., Observed]
) -> None:
    observed = numbers_trial(options)
    error = 1e-3 if options.precision == "float32" else BFLOAT16_ERROR
    for metrics, expected in zip(observed.evaluations, cpu_losses.evaluations, strict=True):
        assert metrics.train_loss == pytest.approx(expected.train_loss, abs=error)
        assert metrics.val_loss == pytest.approx(expected.val_loss, abs=error)


@pytest.fixture(scope="module")
def numbers_trial(gpt2: ModelSource) -> Callable[..., Observed]:
    """Function that trains one trial of 15 steps with given options."""
    config = make_config(context_length=64, batch_size=8, evals_per_epoch=3)
    corpus = random_corpus(config, 15 * config.batch_size)
    return lambda options: train(config, corpus, gpt2, options=options)


@pytest.fixture(scope="module")
def cpu_losses(numbers_trial: Callable[..., Observed]) -> Observed:
    """The trial on the CPU in float32."""
    return numbers_trial(ExecutionOptions("cpu", "float32"))
