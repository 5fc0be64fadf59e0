"""Training loop: losses, micro-batches, bit-exact resume, divergence, the best epoch."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference_loss import BFLOAT16_ROUNDING, FLOAT32_ROUNDING, TRAINING_ROUNDING, mean_loss
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylm import TrialConfig
from raylm.data.corpus import Corpus, Tokens, TokenSplit, Windows
from raylm.errors import WorkError
from raylm.results import manifest
from raylm.results.progress import MicroBatching
from raylm.training import models
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.train import Evaluation, finetune

NANO = models.resolve_model("gpt2-nano", pretrained=True)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_config(**fields: Any) -> TrialConfig:
    return TrialConfig(**{"context_length": 32, "batch_size": 8, "learning_rate": 1e-3, **fields})


def train(config: TrialConfig, corpus: Corpus, resume_from: Path | None = None, **options: Any) -> list[Evaluation]:
    """Return all evaluations of a trial; `options` are fields of `ExecutionOptions`."""
    return list(finetune(config, corpus, NANO, options=ExecutionOptions(**options), resume_from=resume_from))


def copy_weights(evaluation: Evaluation) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in evaluation.trainer.model.state_dict().items()}


def has_equal_weights(evaluation: Evaluation, expected: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in copy_weights(evaluation).items())


def make_windows(corpus: Corpus, tokens: Tokens) -> Windows:
    return Windows(tokens, 32, corpus.start_token_id)


def test_training_lowers_both_losses(corpus: Corpus) -> None:
    first, second = train(make_config(epochs=2), corpus)
    assert first.trainer.progress.first_loss == pytest.approx(math.log(corpus.vocab_size), abs=0.3)  # random weights
    assert second.eval_metrics.train_loss < first.eval_metrics.train_loss < math.log(corpus.vocab_size)
    assert second.eval_metrics.val_loss < first.eval_metrics.val_loss
    assert [evaluation.eval_metrics.epoch for evaluation in (first, second)] == [1, 2]


def test_losses_are_means_over_tokens_each_counted_once(corpus: Corpus) -> None:
    config = make_config(batch_size=7, max_train_tokens=500, learning_rate=1e-12)  # weights stay as they are
    (last,) = train(config, corpus)
    model = last.trainer.model.eval()
    metrics, validation = last.eval_metrics, corpus.validation
    assert metrics.tokens_seen == 500
    train_loss = mean_loss(model, make_windows(corpus, corpus.train.tokens[:500]))
    val_loss = mean_loss(model, make_windows(corpus, validation.tokens))
    assert metrics.train_loss == pytest.approx(train_loss, rel=FLOAT32_ROUNDING)
    assert metrics.val_loss == pytest.approx(val_loss, rel=FLOAT32_ROUNDING)
    assert metrics.adj_val_loss == metrics.val_loss * len(validation.tokens) / validation.num_words


def test_micro_batches_change_losses_by_rounding_only(corpus: Corpus) -> None:
    config = make_config(max_train_tokens=1000)
    whole, *smaller = (train(config, corpus, micro_batching=MicroBatching(size))[-1] for size in (8, 4, 1))
    for evaluation in smaller:
        assert evaluation.eval_metrics.train_loss == pytest.approx(whole.eval_metrics.train_loss, rel=TRAINING_ROUNDING)
        assert evaluation.eval_metrics.val_loss == pytest.approx(whole.eval_metrics.val_loss, rel=TRAINING_ROUNDING)


def test_activation_checkpointing_is_bit_exact(corpus: Corpus, tmp_path: Path) -> None:
    config = make_config(dropout=0.1, max_train_tokens=1000, evals_per_epoch=2)
    expected = train(config, corpus, micro_batching=MicroBatching(3))[-1]
    expected_weights = copy_weights(expected)
    options = ExecutionOptions(micro_batching=MicroBatching(3, recompute=True))
    running = finetune(config, corpus, NANO, options=options)
    next(running).save(tmp_path)
    resumed = train(config, corpus, resume_from=tmp_path, micro_batching=MicroBatching(8))  # the recorded 3 holds
    for last in (*running, *resumed):
        assert last.eval_metrics == expected.eval_metrics and last.trainer.progress.recompute
        assert has_equal_weights(last, expected_weights)


def test_result_depends_on_the_config_only(corpus: Corpus) -> None:
    config = make_config(dropout=0.1, max_train_tokens=800)
    first, second = (train(config, corpus)[-1] for _ in range(2))
    assert first.eval_metrics == second.eval_metrics
    assert has_equal_weights(first, copy_weights(second))
    other_seed = train(make_config(dropout=0.1, max_train_tokens=800, seed=1), corpus)[-1]
    assert other_seed.eval_metrics.val_loss != first.eval_metrics.val_loss


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_resume_is_bit_exact(corpus: Corpus, tmp_path: Path, optimizer: str, stopped_after: int) -> None:
    config = make_config(epochs=2, evals_per_epoch=2, dropout=0.1, optimizer=optimizer, max_train_tokens=1200)
    uninterrupted = train(config, corpus, micro_batching=MicroBatching(3))
    running = finetune(config, corpus, NANO, options=ExecutionOptions(micro_batching=MicroBatching(3)))
    for _ in range(stopped_after):
        evaluation = next(running)
    evaluation.save(tmp_path)
    torch.manual_seed(12345)
    resumed = train(config, corpus, resume_from=tmp_path, micro_batching=MicroBatching(8))  # the recorded 3 holds
    assert [last.eval_metrics for last in resumed] == [last.eval_metrics for last in uninterrupted[stopped_after:]]
    assert has_equal_weights(resumed[-1], copy_weights(uninterrupted[-1]))
    progress, expected = (
        dataclasses.asdict(resumed[-1].trainer.progress),
        dataclasses.asdict(uninterrupted[-1].trainer.progress),
    )
    assert {**progress, "training_seconds": 0} == {**expected, "training_seconds": 0}


@pytest.mark.parametrize("due_at", [1, 5, 11])
def test_resume_between_evaluations_is_bit_exact(corpus: Corpus, tmp_path: Path, due_at: int) -> None:
    config = make_config(epochs=2, dropout=0.1, max_train_tokens=1500)  # 7 steps per epoch
    *_, uninterrupted = train(config, corpus)
    steps: list[int] = []
    hooks = TrainingHooks(
        on_step=lambda metrics: steps.append(metrics.step), is_checkpoint_due=lambda: steps[-1] == due_at
    )
    running = finetune(config, corpus, NANO, hooks=hooks)
    due = next(evaluation for evaluation in running if evaluation.trainer.progress.step == due_at)
    assert not due.diverged and "val_loss" not in due.metrics()
    due.save(tmp_path)
    *_, resumed = train(config, corpus, resume_from=tmp_path)
    assert resumed.eval_metrics == uninterrupted.eval_metrics
    assert resumed.trainer.progress.curve == uninterrupted.trainer.progress.curve
    assert has_equal_weights(resumed, copy_weights(uninterrupted))


def test_checkpoint_opens_in_transformers_with_its_val_loss(corpus: Corpus, tmp_path: Path) -> None:
    (last,) = train(make_config(), corpus)
    last.save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    loss = mean_loss(model, make_windows(corpus, corpus.validation.tokens))
    assert loss == pytest.approx(last.eval_metrics.val_loss, rel=FLOAT32_ROUNDING)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token_id == corpus.eos_token_id
    assert tokenizer.decode(tokenizer("for every x")["input_ids"]) == "for every x"
    assert not (tmp_path / "README.md").exists()  # export writes the model card


def test_evaluation_has_its_precision_and_its_loss_in_each_unit(corpus: Corpus, tmp_path: Path) -> None:
    (last,) = train(make_config(max_train_tokens=500), corpus, precision="bfloat16")
    last.save(tmp_path)
    saved = manifest.verify(tmp_path)
    assert saved is not None and saved.progress.evaluations == [last.eval_metrics]
    assert last.eval_metrics.precision == "bfloat16" and "precision" not in last.metrics()
    split, metrics = corpus.validation, last.eval_metrics
    assert metrics.adj_val_loss == metrics.val_loss * len(split.tokens) / split.num_words
    assert last.metrics()["nats_per_byte"] == metrics.val_loss * len(split.tokens) / split.num_bytes


def test_split_without_a_word_or_a_byte_divides_by_nothing() -> None:
    empty = TokenSplit(np.arange(4, dtype=np.uint16), num_words=0, num_bytes=0)
    assert empty.per_word(2.0) == 8.0 and math.isnan(empty.per_byte(2.0))


def test_infinite_loss_ends_the_trial_immediately(corpus: Corpus) -> None:
    config = make_config(learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0, epochs=3, lr_schedule="constant")
    (last,) = train(config, corpus)
    assert last.diverged
    assert last.trainer.progress.step < 10
    assert all(math.isfinite(value) for value in last.metrics().values())
    assert last.trainer.progress.best_metrics is None


def test_best_epoch_may_precede_the_last(corpus: Corpus) -> None:
    config = make_config(learning_rate=1e-2, epochs=6, lr_schedule="constant", max_train_tokens=1000)
    evaluations = train(config, corpus)
    losses = [evaluation.eval_metrics.val_loss for evaluation in evaluations]
    best = int(np.argmin(losses))
    assert best < len(losses) - 1  # overfits a thousand tokens
    assert evaluations[-1].trainer.progress.best_metrics == evaluations[best].eval_metrics
    assert evaluations[-1].metrics()["best_epoch"] == best + 1


@pytest.mark.parametrize(
    ("evals_per_epoch", "expected"), [(1, [12]), (3, [4, 8, 12]), (5, [3, 5, 8, 10, 12]), (100, range(1, 13))]
)
def test_evaluations_are_evenly_spaced_up_to_the_end(corpus: Corpus, evals_per_epoch: int, expected: Any) -> None:
    config = make_config(max_train_tokens=12 * 31, batch_size=1, evals_per_epoch=evals_per_epoch)
    assert [evaluation.eval_metrics.step for evaluation in train(config, corpus)] == list(expected)


def test_foreign_or_damaged_checkpoint_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    (last,) = train(make_config(max_train_tokens=300), corpus)
    last.save(tmp_path)
    with pytest.raises(WorkError, match="not a checkpoint of trial"):
        train(make_config(max_train_tokens=300, seed=7), corpus, resume_from=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert manifest.verify(tmp_path) is None
    with pytest.raises(WorkError, match="not a checkpoint of trial"):
        train(make_config(max_train_tokens=300), corpus, resume_from=tmp_path)


def test_bfloat16_has_float32_weights_and_nearly_the_same_loss(corpus: Corpus) -> None:
    config = make_config(max_train_tokens=1000)
    (float32,), (bfloat16,) = (train(config, corpus, precision=precision) for precision in ("float32", "bfloat16"))
    assert {value.dtype for value in copy_weights(bfloat16).values()} == {torch.float32}
    assert bfloat16.eval_metrics.val_loss != float32.eval_metrics.val_loss
    assert bfloat16.eval_metrics.val_loss == pytest.approx(float32.eval_metrics.val_loss, rel=BFLOAT16_ROUNDING)
