"""Training in float16 on a CPU's arithmetic: losses near float32's, skipped steps, exact resume, divergence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from raylm import TrialConfig
from raylm.data.corpus import Corpus
from raylm.events import format_evaluation
from raylm.results import manifest
from raylm.results.progress import LossScale
from raylm.training import models, trainer, validation
from raylm.training.optim import loss_scaler
from raylm.training.optim.adafactor import Adafactor
from raylm.training.optim.loss_scaler import MAX_OVERFLOWS, LossScaler
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.train import Evaluation, finetune

NANO = models.resolve_model("gpt2-nano", pretrained=True)
HUGE_SCALE = 2.0**24
"""Scale at which the gradients of `gpt2-nano` overflow, for several steps until it has fallen far enough."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_config(steps: int, **fields: Any) -> TrialConfig:
    """Return a trial of some steps of two windows of 15 tokens."""
    tokens = {"context_length": 16, "batch_size": 2, "max_train_tokens": 30 * steps}
    return TrialConfig(**{**tokens, "learning_rate": 1e-3, **fields})


def start(config: TrialConfig, corpus: Corpus, precision: str = "float16", **arguments: Any) -> Iterator[Evaluation]:
    return finetune(config, corpus, NANO, options=ExecutionOptions(precision=precision), **arguments)


def weights(evaluation: Evaluation) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in evaluation.trainer.model.parameters()]


def start_at_a_huge_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "LossScale", partial(LossScale, scale=HUGE_SCALE))


# ---- losses -------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_losses_of_200_steps_are_within_0_005_of_float32(corpus: Corpus) -> None:
    config = make_config(200, max_train_tokens=1500, epochs=4, dropout=0.1)
    float32, float16 = ([*start(config, corpus, name)][-1].trainer.progress for name in ("float32", "float16"))
    assert float16.step == 200 and float16.skipped_steps == 0
    assert float32.curve[-1][1] < float32.curve[0][1] - 1  # it has learned
    for (_, expected), (_, loss) in zip(float32.curve, float16.curve, strict=True):
        assert loss == pytest.approx(expected, abs=0.005)
    for reference, found in zip(float32.evaluations, float16.evaluations, strict=True):
        assert found.val_loss == pytest.approx(reference.val_loss, abs=0.005)
        assert found.precision == "float16"


# ---- overflow -----------------------------------------------------------------------------------------------------


def test_scale_follows_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scaler, "GROWTH_STEPS", 3)
    theirs = torch.amp.GradScaler("cpu", LossScale().scale, growth_interval=3)
    ours = LossScaler(LossScale(), torch.device("cpu"))
    parameters = [torch.ones(3, requires_grad=True) for _ in range(2)]
    optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in parameters]
    for factor in (1.0, math.inf, math.nan, *[1.0] * 8, 1e30, 1.0, 1.0):
        losses = [(parameter * factor).square().sum() for parameter in parameters]
        theirs.scale(losses[0]).backward()  # type: ignore[no-untyped-call]
        ours.scale(losses[1]).backward()  # type: ignore[no-untyped-call]
        theirs.step(optimizers[0])
        theirs.update()
        gradient = parameters[1].grad
        assert gradient is not None
        ours.unscale([gradient])
        ours.step(optimizers[1])
        ours.mark()
        for optimizer in optimizers:
            optimizer.zero_grad()
        (state,) = ours.read([1.0])
        assert state.scale == theirs.get_scale() and state.good_steps == theirs._get_growth_tracker()
        assert torch.equal(*parameters)
    assert state.skipped_steps == 3 and state.overflows_in_a_row == 0


@pytest.mark.parametrize("skipped_before", [0, 1])
def test_skipped_step_leaves_stacks_as_they_were_and_the_next_one_goes_on(skipped_before: int) -> None:
    torch.manual_seed(0)
    values = [torch.randn(shape) for shape in ((4, 6), (4, 6), (5,))]
    steps = [([torch.randn_like(value) for value in values], 0.0) for _ in range(2)]
    overflow = [torch.full_like(value, math.nan) for value in values], 1.0
    with_overflow = [*steps[:skipped_before], overflow, *steps[skipped_before:]]
    plain, skipped = (run_steps(values, gradients) for gradients in (steps, with_overflow))
    assert all(map(torch.equal, plain, skipped))


def run_steps(values: list[Tensor], steps: list[tuple[list[Tensor], float]]) -> list[Tensor]:
    """Return parameters and state of Adafactor in stacks after steps with their gradients and `found_inf`."""
    parameters = [value.clone().requires_grad_() for value in values]
    optimizer = Adafactor(parameters, lr=0.1, weight_decay=0.1, stacked=True)
    for gradients, found_inf in steps:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]
        optimizer.step()
    return [*parameters, *(value for parameter in parameters for value in optimizer.state[parameter].values())]


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_overflow_skips_steps_which_are_counted_and_a_resumed_trial_goes_on_to_the_bit(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    start_at_a_huge_scale(monkeypatch)
    config = make_config(16, optimizer=optimizer, dropout=0.1, weight_decay=0.1)
    before = list(models.load_model(NANO, vocab_size=corpus.vocab_size, dropout=0.1, seed=config.seed).parameters())
    steps: list[int] = []
    hooks = TrainingHooks(lambda metrics: steps.append(metrics.step), is_checkpoint_due=lambda: steps[-1] in (3, 12))
    running = start(config, corpus, hooks=hooks)
    early = next(running)
    assert early.trainer.progress.loss_scale == LossScale(HUGE_SCALE / 8, 0, 3, 3) and not early.diverged
    assert all(map(torch.equal, weights(early), before))
    early.save(tmp_path / "early")
    late = next(running)
    late.save(tmp_path / "late")
    (last,) = running
    progress = last.trainer.progress
    skipped = progress.skipped_steps
    assert progress.step == 16 and 3 < skipped < 12 and not last.diverged
    assert progress.loss_scale == LossScale(HUGE_SCALE / 2**skipped, 16 - skipped, skipped, 0)
    assert format_evaluation(last.metrics()).endswith(f", {skipped} steps skipped in float16")
    assert not any(map(torch.equal, weights(last), before)) and progress.tokens_seen == 16 * 30
    for name in ("early", "late"):
        monkeypatch.undo()  # the scale is that of the checkpoint
        torch.manual_seed(12345)
        (resumed,) = start(config, corpus, resume_from=tmp_path / name)
        assert resumed.eval_metrics == last.eval_metrics
        assert all(map(torch.equal, weights(resumed), weights(last)))
        assert dataclasses.replace(resumed.trainer.progress, training_seconds=0) == dataclasses.replace(
            progress, training_seconds=0
        )


def lose_at(bad_steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of some steps infinite, as an overflow of activations does."""
    calls = iter(range(10**6))
    plain: Callable[..., Tensor] = validation.autocast_loss

    def loss(*arguments: Any) -> Tensor:
        return plain(*arguments) * (math.inf if next(calls) in bad_steps else 1.0)

    monkeypatch.setattr(trainer, "autocast_loss", loss)


def test_single_step_with_an_infinite_loss_is_skipped_and_part_of_no_mean(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_at({0, 3}, monkeypatch)
    losses: list[float] = []
    (last,) = start(make_config(6), corpus, hooks=TrainingHooks(lambda metrics: losses.append(metrics.loss)))
    progress = last.trainer.progress
    assert not last.diverged and progress.skipped_steps == 2 and progress.step == 6
    assert [math.isfinite(loss) for loss in losses] == [False, True, True, False, True, True]
    finite = [loss for loss in losses if math.isfinite(loss)]
    assert progress.first_loss == finite[0] and progress.train_loss == pytest.approx(sum(finite) / 4)


def test_loss_that_stays_infinite_is_divergence(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    lose_at(set(range(2, 10**4)), monkeypatch)
    (last,) = start(make_config(2 + MAX_OVERFLOWS + 2), corpus)
    assert last.diverged and last.trainer.progress.step == 2 + MAX_OVERFLOWS - 1
    assert last.trainer.progress.best_metrics is None


def test_checkpoint_of_another_precision_starts_with_the_first_scale(corpus: Corpus, tmp_path: Path) -> None:
    config = make_config(4, epochs=2)
    first = next(start(config, corpus, "float32"))
    first.save(tmp_path)
    assert "skipped" not in format_evaluation(first.metrics()) and "skipped_steps" not in first.metrics()
    assert "loss_scale" not in (tmp_path / manifest.MANIFEST_FILE).read_text()  # as in all earlier checkpoints
    (last,) = start(config, corpus, resume_from=tmp_path)
    assert last.trainer.progress.loss_scale == LossScale(good_steps=4)
