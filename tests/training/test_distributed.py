"""Several ranks train one trial as one process does: the same losses, checkpoints to go on from, an end for all."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch

from raylm import TrialConfig
from raylm.data.corpus import Corpus
from raylm.results.progress import EvalMetrics, MicroBatching
from raylm.training import models
from raylm.training.distributed import SINGLE_PROCESS, DistributedContext, create_store, join_process_group
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.train import finetune

MOST_RANKS = 3


@dataclass
class Seen:
    """What one rank saw of a trial."""

    losses: list[float] = field(default_factory=list)
    """Of the steps, per token."""
    measured: list[EvalMetrics] = field(default_factory=list)
    diverged: bool = False
    weights: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    micro_batch_size: int = 0


Train = Callable[..., list[Seen]]


def seen_by(
    ranks: DistributedContext,
    config: TrialConfig,
    corpus: Corpus,
    save_at: int,
    folder: Path,
    options: ExecutionOptions,
    resume_from: Path | None,
) -> Seen:
    """One rank's part of a trial, to its end or to the step at which the first rank saves it."""
    seen = Seen()
    hooks = TrainingHooks(
        on_step=lambda metrics: seen.losses.append(metrics.loss),
        is_checkpoint_due=lambda: ranks.rank == 0 and len(seen.losses) == save_at,  # the answer of rank 0 is for all
    )
    running = finetune(
        config,
        corpus,
        models.resolve_model("gpt2-nano", pretrained=True),
        options=options,
        hooks=hooks,
        resume_from=resume_from,
        dist_context=ranks,
    )
    for evaluation in running:
        seen.measured.append(evaluation.eval_metrics)
        seen.diverged = evaluation.diverged
        seen.micro_batch_size = evaluation.trainer.progress.micro_batch_size
        seen.weights = {name: value.numpy().copy() for name, value in evaluation.trainer.model.state_dict().items()}
        if evaluation.trainer.progress.step == save_at:
            if ranks.rank == 0:
                evaluation.save(folder)
            break
    return seen


def joins(rank: int, size: int, port: int, *trial: Any) -> Seen:
    """A rank's process."""
    torch.set_num_threads(1)
    if size == 1:
        return seen_by(SINGLE_PROCESS, *trial)
    with join_process_group(rank, size, "cpu", port) as ranks:
        return seen_by(ranks, *trial)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["raylm.training.train", "transformers.models.gpt2.modeling_gpt2"])
    with ProcessPoolExecutor(MOST_RANKS, context) as processes:
        yield processes


@pytest.fixture
def train(pool: ProcessPoolExecutor, corpus: Corpus, tmp_path: Path) -> Train:
    """Trains with so many ranks; gives what each of them saw."""

    def trained(
        size: int,
        config: TrialConfig,
        corpus: Corpus = corpus,
        save_at: int = 0,
        resume_from: Path | None = None,
        micro_batch_size: int | None = None,
    ) -> list[Seen]:
        store = create_store()
        options = ExecutionOptions(micro_batching=MicroBatching(micro_batch_size) if micro_batch_size else None)
        trial = (config, corpus, save_at, tmp_path, options, resume_from)
        running = [pool.submit(joins, rank, size, store.port, *trial) for rank in range(size)]
        return [one.result(timeout=120) for one in running]

    return trained


def trial(**fields: Any) -> TrialConfig:
    return TrialConfig(**{"context_length": 32, "batch_size": 8, "learning_rate": 1e-3, **fields})


def assert_identical(some: Seen, other: Seen) -> None:
    """Bit for bit."""
    assert some.measured == other.measured
    assert all(np.array_equal(value, other.weights[name]) for name, value in some.weights.items())


UNEVEN = {
    "halves of each batch": {"max_train_tokens": 31 * 40},
    "a last batch of one window": {"max_train_tokens": 31 * 17, "epochs": 2},
    "a short last window": {"max_train_tokens": 31 * 20 + 5, "batch_size": 7},
    "fewer windows than a batch": {"max_train_tokens": 31 * 5, "epochs": 3},
    "adamw": {"max_train_tokens": 31 * 20, "optimizer": "adamw", "weight_decay": 0.1},
}


ROUNDING = 5e-6
"""Relative tolerance of losses where sums are taken in another order, with Adafactor at a learning rate of 1e-3.

Float32 alone leaves 1.6e-7, three units of 2^-24. The rest follows from the gradient of a key's bias, which is rounding
alone, since attention does not depend on that bias. Adafactor divides it by its own root mean square all the same, and
clips the step of the whole `c_attn.bias` by a root mean square that includes it: the biases of queries and values move
by different shares of the learning rate. With micro-batches of 8 and of 4, 3, 2 or 1 windows losses differ by 2e-6 at
a rate of 1e-3, by 5e-7 at 3e-4, and by 1.6e-7 at any rate if that gradient is zero or nothing is clipped. The largest
difference in this file is 3.3e-6 with AVX2, and 2.2e-6 with AVX-512 or no vector instructions.
"""


@pytest.mark.parametrize("fields", UNEVEN.values(), ids=UNEVEN.keys())
@pytest.mark.parametrize(("size", "micro_batch_size"), [(2, None), (2, 3), (3, 2)])
def test_ranks_come_to_the_losses_and_weights_of_one_process(
    train: Train, size: int, micro_batch_size: int | None, fields: dict[str, Any]
) -> None:
    config = trial(**fields)
    (one,) = train(1, config)
    several = train(size, config, micro_batch_size=micro_batch_size)
    for seen in several:
        assert_identical(seen, several[0])
    assert several[0].losses == pytest.approx(one.losses, rel=ROUNDING)
    for ours, theirs in zip(several[0].measured, one.measured, strict=True):
        assert (ours.step, ours.tokens_seen) == (theirs.step, theirs.tokens_seen)
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=ROUNDING)
        assert ours.val_loss == pytest.approx(theirs.val_loss, rel=ROUNDING)
    for name, value in one.weights.items():
        if not name.endswith("c_attn.bias"):  # no loss depends on a key's bias: its gradient is rounding alone
            np.testing.assert_allclose(several[0].weights[name], value, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("save_at", [4, 7])
def test_ranks_go_on_from_a_checkpoint_bit_for_bit(train: Train, tmp_path: Path, size: int, save_at: int) -> None:
    config = trial(max_train_tokens=31 * 30, epochs=2, evals_per_epoch=2, dropout=0.1)  # 4 steps an epoch
    undisturbed = train(size, config, micro_batch_size=2)
    before = train(size, config, micro_batch_size=2, save_at=save_at)
    after = train(size, config, micro_batch_size=8, resume_from=tmp_path)  # the recorded 2 holds
    assert len(before[0].losses) == save_at
    assert [*before[0].losses, *after[0].losses] == undisturbed[0].losses
    for one, other in zip(after, undisturbed, strict=True):
        assert_identical(one, Seen(measured=other.measured[-len(one.measured) :], weights=other.weights))


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1), (2, 3)])
def test_a_trial_goes_on_with_another_number_of_ranks(train: Train, tmp_path: Path, first: int, then: int) -> None:
    config = trial(max_train_tokens=31 * 30, epochs=2)
    (undisturbed,) = train(1, config)
    before = train(first, config, save_at=3, micro_batch_size=1)
    after = train(then, config, resume_from=tmp_path, micro_batch_size=2)
    assert {one.micro_batch_size for one in after} == {2}  # what fits now
    assert [*before[0].losses, *after[-1].losses] == pytest.approx(undisturbed.losses, rel=ROUNDING)
    assert after[0].measured[-1].val_loss == pytest.approx(undisturbed.measured[-1].val_loss, rel=ROUNDING)


def test_each_rank_draws_dropout_masks_of_its_own_the_first_those_of_one_process(train: Train, corpus: Corpus) -> None:
    window = corpus.train.tokens[:31]
    twice = replace(corpus, train=replace(corpus.train, tokens=np.tile(window, 2)))
    alone, config = trial(max_train_tokens=31, dropout=0.5), trial(dropout=0.5)
    (one,) = train(1, alone)
    assert train(2, alone)[0].losses == one.losses  # the second rank has no window
    both = train(2, config, corpus=twice)[0].losses
    assert both != one.losses
    assert both == train(2, config, corpus=twice)[0].losses


def test_a_loss_that_is_not_finite_ends_the_trial_on_all_ranks(train: Train) -> None:
    config = trial(learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0, epochs=3, lr_schedule="constant")
    ended = train(3, config)
    assert [one.diverged for one in ended] == [True] * 3
    assert len({len(one.losses) for one in ended}) == 1


def test_the_meeting_place_is_open_to_this_machine_alone() -> None:
    one, other = create_store(), create_store()
    assert one.port != other.port
    listening = {(link.laddr.ip, link.laddr.port) for link in psutil.Process().net_connections() if not link.raddr}
    assert {place for place in listening if place[1] in (one.port, other.port)} == {
        ("127.0.0.1", one.port),
        ("127.0.0.1", other.port),
    }
