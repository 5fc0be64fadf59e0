"""The loop: what a loss is, micro-batches, resuming bit for bit, trials that diverge, the best epoch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from raylm import TrialConfig
from raylm.data.corpus import Corpus, Windows
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


def trial(**fields: Any) -> TrialConfig:
    return TrialConfig(**{"context_length": 32, "batch_size": 8, "learning_rate": 1e-3, **fields})


def evaluations(
    config: TrialConfig, corpus: Corpus, resume_from: Path | None = None, **options: Any
) -> list[Evaluation]:
    return list(finetune(config, corpus, NANO, options=ExecutionOptions(**options), resume_from=resume_from))


def weights(evaluation: Evaluation) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in evaluation.trainer.model.state_dict().items()}


def test_fine_tuning_lowers_both_losses(corpus: Corpus) -> None:
    first, second = evaluations(trial(epochs=2), corpus)
    assert first.trainer.progress.first_loss == pytest.approx(math.log(corpus.vocab_size), abs=0.3)
    assert second.eval_metrics.train_loss < first.eval_metrics.train_loss < math.log(corpus.vocab_size)
    assert second.eval_metrics.val_loss < first.eval_metrics.val_loss
    assert [one.eval_metrics.epoch for one in (first, second)] == [1, 2]


def test_losses_are_means_over_tokens_each_counted_once(corpus: Corpus) -> None:
    config = trial(batch_size=7, max_train_tokens=500, learning_rate=1e-12)  # weights stay as they are
    (last,) = evaluations(config, corpus)
    model = last.trainer.model.eval()

    def mean_loss(tokens: Any) -> float:
        windows, total = Windows(tokens, 32, corpus.eos_token_id), 0.0
        for number in range(len(windows)):  # one window at a time, through transformers' own loss
            inputs = torch.from_numpy(windows.get_batch([number])[0])
            total += model(input_ids=inputs, labels=inputs).loss.item() * windows.count_tokens([number])
        return total / len(tokens)

    assert last.eval_metrics.tokens_seen == 500
    assert last.eval_metrics.train_loss == pytest.approx(mean_loss(corpus.train.tokens[:500]), abs=1e-5)
    assert last.eval_metrics.val_loss == pytest.approx(mean_loss(corpus.validation.tokens), abs=1e-5)
    words = corpus.validation.num_words
    assert last.eval_metrics.adj_val_loss == last.eval_metrics.val_loss * len(corpus.validation.tokens) / words


def test_micro_batches_change_nothing_but_rounding(corpus: Corpus) -> None:
    config = trial(max_train_tokens=1000)
    whole, halves, ones = (evaluations(config, corpus, micro_batching=MicroBatching(size))[-1] for size in (8, 4, 1))
    for other in (halves, ones):
        assert other.eval_metrics.train_loss == pytest.approx(whole.eval_metrics.train_loss, abs=1e-4)
        assert other.eval_metrics.val_loss == pytest.approx(whole.eval_metrics.val_loss, abs=1e-4)


def test_recomputed_activations_change_no_bit(corpus: Corpus, tmp_path: Path) -> None:
    config = trial(dropout=0.1, max_train_tokens=1000, evals_per_epoch=2)
    kept = evaluations(config, corpus, micro_batching=MicroBatching(3))
    begun = finetune(config, corpus, NANO, options=ExecutionOptions(micro_batching=MicroBatching(3, recompute=True)))
    next(begun).save(tmp_path)
    resumed = evaluations(config, corpus, resume_from=tmp_path, micro_batching=MicroBatching(8))  # keeps 3
    for last in (*begun, *resumed):
        assert last.eval_metrics == kept[-1].eval_metrics and last.trainer.progress.recompute
        assert all(torch.equal(value, weights(kept[-1])[name]) for name, value in weights(last).items())


def test_a_trial_is_a_function_of_its_config(corpus: Corpus) -> None:
    config = trial(dropout=0.1, max_train_tokens=800)
    one, same = (evaluations(config, corpus)[-1] for _ in range(2))
    assert one.eval_metrics == same.eval_metrics
    assert all(torch.equal(value, weights(same)[name]) for name, value in weights(one).items())
    other = evaluations(trial(dropout=0.1, max_train_tokens=800, seed=1), corpus)[-1]
    assert other.eval_metrics.val_loss != one.eval_metrics.val_loss


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
@pytest.mark.parametrize("stopped_after", [1, 2, 3])
def test_a_resumed_trial_ends_bit_for_bit_as_an_undisturbed_one(
    corpus: Corpus, tmp_path: Path, optimizer: str, stopped_after: int
) -> None:
    config = trial(epochs=2, evals_per_epoch=2, dropout=0.1, optimizer=optimizer, max_train_tokens=1200)
    undisturbed = evaluations(config, corpus, micro_batching=MicroBatching(3))
    disturbed = finetune(config, corpus, NANO, options=ExecutionOptions(micro_batching=MicroBatching(3)))
    for _ in range(stopped_after):
        stopped = next(disturbed)
    stopped.save(tmp_path)
    torch.manual_seed(12345)
    resumed = evaluations(config, corpus, resume_from=tmp_path, micro_batching=MicroBatching(8))  # the recorded 3 holds
    assert [one.eval_metrics for one in resumed] == [one.eval_metrics for one in undisturbed[stopped_after:]]
    final, expected = resumed[-1], undisturbed[-1]
    assert all(torch.equal(value, weights(expected)[name]) for name, value in weights(final).items())
    ours, theirs = final.trainer.progress.as_dict(), expected.trainer.progress.as_dict()
    assert {**ours, "training_seconds": 0} == {**theirs, "training_seconds": 0}


@pytest.mark.parametrize("due_at", [1, 5, 11])
def test_a_trial_saved_between_two_evaluations_goes_on_bit_for_bit(corpus: Corpus, tmp_path: Path, due_at: int) -> None:
    config = trial(epochs=2, dropout=0.1, max_train_tokens=1500)  # 7 steps an epoch
    *_, undisturbed = evaluations(config, corpus)
    steps: list[int] = []
    hooks = TrainingHooks(
        on_step=lambda metrics: steps.append(metrics.step), is_checkpoint_due=lambda: steps[-1] == due_at
    )
    running = finetune(config, corpus, NANO, hooks=hooks)
    on_the_way = next(one for one in running if one.trainer.progress.step == due_at)
    assert not on_the_way.diverged and "val_loss" not in on_the_way.metrics()
    on_the_way.save(tmp_path)
    *_, resumed = evaluations(config, corpus, resume_from=tmp_path)
    assert resumed.eval_metrics == undisturbed.eval_metrics
    assert resumed.trainer.progress.curve == undisturbed.trainer.progress.curve
    ours, theirs = weights(resumed), weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_opens_in_transformers_and_gives_its_val_loss(corpus: Corpus, tmp_path: Path) -> None:
    (last,) = evaluations(trial(), corpus)
    last.save(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    windows, total = Windows(corpus.validation.tokens, 32, corpus.eos_token_id), 0.0
    with torch.no_grad():
        for number in range(len(windows)):
            inputs = torch.from_numpy(windows.get_batch([number])[0])
            total += model(input_ids=inputs, labels=inputs).loss.item() * windows.count_tokens([number])
    assert total / len(corpus.validation.tokens) == pytest.approx(last.eval_metrics.val_loss, abs=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.eos_token_id == corpus.eos_token_id
    assert tokenizer.decode(tokenizer("for every x")["input_ids"]) == "for every x"
    assert not (tmp_path / "README.md").exists()  # export writes the model card


def test_a_loss_that_is_not_finite_ends_the_trial_at_once(corpus: Corpus) -> None:
    config = trial(learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0, epochs=3, lr_schedule="constant")
    ended = evaluations(config, corpus)
    assert [one.diverged for one in ended] == [True]
    assert ended[-1].trainer.progress.step < 10
    assert all(math.isfinite(value) for value in ended[-1].metrics().values())
    assert ended[-1].trainer.progress.best_metrics is None


def test_the_best_epoch_can_be_another_than_the_last(corpus: Corpus) -> None:
    ended = evaluations(trial(learning_rate=1e-2, epochs=6, lr_schedule="constant", max_train_tokens=1000), corpus)
    losses = [one.eval_metrics.val_loss for one in ended]
    best = int(np.argmin(losses))
    assert best < len(losses) - 1  # it overfits a thousand tokens
    assert ended[-1].trainer.progress.best_metrics == ended[best].eval_metrics
    assert ended[-1].metrics()["best_epoch"] == best + 1


@pytest.mark.parametrize(
    ("evals", "expected"), [(1, [12]), (3, [4, 8, 12]), (5, [3, 5, 8, 10, 12]), (100, range(1, 13))]
)
def test_evaluations_are_evenly_spaced_and_the_last_at_the_end(corpus: Corpus, evals: int, expected: Any) -> None:
    config = trial(max_train_tokens=12 * 31, batch_size=1, evals_per_epoch=evals)
    assert [one.eval_metrics.step for one in evaluations(config, corpus)] == list(expected)


def test_a_checkpoint_of_another_trial_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    (last,) = evaluations(trial(max_train_tokens=300), corpus)
    last.save(tmp_path)
    with pytest.raises(WorkError, match="no checkpoint of trial"):
        evaluations(trial(max_train_tokens=300, seed=7), corpus, resume_from=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert manifest.verify(tmp_path) is None
    with pytest.raises(WorkError, match="no checkpoint of trial"):
        evaluations(trial(max_train_tokens=300), corpus, resume_from=tmp_path)


def test_bfloat16_keeps_float32_weights_and_nearly_the_same_loss(corpus: Corpus) -> None:
    config = trial(max_train_tokens=1000)
    (exact,), (half,) = (evaluations(config, corpus, precision=name) for name in ("float32", "bfloat16"))
    assert {value.dtype for value in weights(half).values()} == {torch.float32}
    assert half.eval_metrics.val_loss != exact.eval_metrics.val_loss
    assert half.eval_metrics.val_loss == pytest.approx(exact.eval_metrics.val_loss, abs=0.02)
