"""Several ranks train a trial as one process does: equal losses, resume, a common end."""

from __future__ import annotations

import contextlib
import itertools
import math
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
import torch.distributed as dist
from reference_loss import TRAINING_ROUNDING

from raylm import TrialConfig
from raylm.data.corpus import Corpus
from raylm.results.progress import EvalMetrics, MicroBatching
from raylm.training import models, trainer
from raylm.training.distributed import SINGLE_PROCESS, DistributedContext, create_store, join_process_group
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.train import finetune
from raylm.training.validation import autocast_loss

MAX_RANKS = 3


@dataclass(frozen=True)
class Job:
    """Trial that all ranks train, to its end or to the step at which rank 0 saves it."""

    config: TrialConfig
    corpus: Corpus
    save_at: int
    folder: Path
    options: ExecutionOptions
    resume_from: Path | None
    overflow_of: tuple[int, int] | None = None
    """Rank whose loss is infinite, and the number of its micro-batch, from 0."""


@dataclass
class RankResult:
    """Observations of one rank."""

    losses: list[float] = field(default_factory=list)
    """Loss of each step, per token."""
    eval_metrics: list[EvalMetrics] = field(default_factory=list)
    diverged: bool = False
    weights: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    micro_batch_size: int = 0
    skipped_steps: int = 0


Train = Callable[..., list[RankResult]]


def run_job(dist_context: DistributedContext, job: Job) -> RankResult:
    result = RankResult()

    def is_checkpoint_due() -> bool:
        return dist_context.rank == 0 and len(result.losses) == job.save_at  # rank 0 decides for all

    running = finetune(
        job.config,
        job.corpus,
        models.resolve_model("gpt2-nano", pretrained=True),
        options=job.options,
        hooks=TrainingHooks(lambda metrics: result.losses.append(metrics.loss), is_checkpoint_due=is_checkpoint_due),
        resume_from=job.resume_from,
        dist_context=dist_context,
    )
    for evaluation in running:
        result.eval_metrics.append(evaluation.eval_metrics)
        result.diverged = evaluation.diverged
        result.micro_batch_size = evaluation.trainer.progress.micro_batch_size
        result.skipped_steps = evaluation.trainer.progress.skipped_steps
        result.weights = {name: value.numpy().copy() for name, value in evaluation.trainer.model.state_dict().items()}
        if evaluation.trainer.progress.step == job.save_at:
            if dist_context.rank == 0:
                evaluation.save(job.folder)
            break
    return result


def run_rank(rank: int, world_size: int, port: int, job: Job) -> RankResult:
    """Run a job as one rank, in a process of the pool."""
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        if job.overflow_of is not None and rank == job.overflow_of[0]:
            factors = (math.inf if number == job.overflow_of[1] else 1.0 for number in itertools.count())
            monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
            monkeypatch.setattr(trainer, "autocast_loss", lambda *batch: autocast_loss(*batch) * next(factors))
        if world_size == 1:
            return run_job(SINGLE_PROCESS, job)
        return run_job(stack.enter_context(join_process_group(rank, world_size, "cpu", port)), job)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["raylm.training.train", "transformers.models.gpt2.modeling_gpt2"])
    with ProcessPoolExecutor(MAX_RANKS, context) as processes:
        yield processes


@pytest.fixture
def train(pool: ProcessPoolExecutor, corpus: Corpus, tmp_path: Path) -> Train:
    """Function that trains with `world_size` ranks and returns the result of each."""

    def run(
        world_size: int,
        config: TrialConfig,
        corpus: Corpus = corpus,
        save_at: int = 0,
        resume_from: Path | None = None,
        micro_batch_size: int | None = None,
        precision: str = "float32",
        overflow_of: tuple[int, int] | None = None,
    ) -> list[RankResult]:
        store = create_store()
        micro_batching = MicroBatching(micro_batch_size) if micro_batch_size else None
        options = ExecutionOptions(precision=precision, micro_batching=micro_batching)
        job = Job(config, corpus, save_at, tmp_path, options, resume_from, overflow_of)
        futures = [pool.submit(run_rank, rank, world_size, store.port, job) for rank in range(world_size)]
        return [future.result(timeout=120) for future in futures]

    return run


def make_config(**fields: Any) -> TrialConfig:
    return TrialConfig(**{"context_length": 32, "batch_size": 8, "learning_rate": 1e-3, **fields})


def assert_identical(result: RankResult, expected: RankResult) -> None:
    """Assert that evaluations and weights are equal bit for bit."""
    assert result.eval_metrics == expected.eval_metrics
    assert all(np.array_equal(value, expected.weights[name]) for name, value in result.weights.items())


UNEVEN = {
    "halves of each batch": {"max_train_tokens": 31 * 40},
    "a last batch of one window": {"max_train_tokens": 31 * 17, "epochs": 2},
    "a short last window": {"max_train_tokens": 31 * 20 + 5, "batch_size": 7},
    "fewer windows than a batch": {"max_train_tokens": 31 * 5, "epochs": 3},
    "adamw": {"max_train_tokens": 31 * 20, "optimizer": "adamw", "weight_decay": 0.1},
}
"""Fields of trials whose batches are split unevenly, and of one with AdamW."""


@pytest.mark.parametrize("fields", UNEVEN.values(), ids=UNEVEN.keys())
@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(2, None), (2, 3), (3, 2)])
def test_ranks_reach_the_losses_and_weights_of_one_process(
    train: Train, world_size: int, micro_batch_size: int | None, fields: dict[str, Any]
) -> None:
    config = make_config(**fields)
    (expected,) = train(1, config)
    first, *others = train(world_size, config, micro_batch_size=micro_batch_size)
    for result in others:
        assert_identical(result, first)
    assert first.losses == pytest.approx(expected.losses, rel=TRAINING_ROUNDING)
    for ours, theirs in zip(first.eval_metrics, expected.eval_metrics, strict=True):
        assert (ours.step, ours.tokens_seen) == (theirs.step, theirs.tokens_seen)
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=TRAINING_ROUNDING)
        assert ours.val_loss == pytest.approx(theirs.val_loss, rel=TRAINING_ROUNDING)
    for name, value in expected.weights.items():
        if not name.endswith("c_attn.bias"):  # no loss depends on a key's bias: its gradient is rounding alone
            # a fifth of one step: rounding also decides the direction of steps for gradients near zero
            np.testing.assert_allclose(first.weights[name], value, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("save_at", [4, 7])
def test_resume_with_several_ranks_is_bit_exact(train: Train, tmp_path: Path, world_size: int, save_at: int) -> None:
    config = make_config(max_train_tokens=31 * 30, epochs=2, evals_per_epoch=2, dropout=0.1)  # 4 steps per epoch
    uninterrupted = train(world_size, config, micro_batch_size=2)
    saved = train(world_size, config, micro_batch_size=2, save_at=save_at)
    resumed = train(world_size, config, micro_batch_size=8, resume_from=tmp_path)  # the recorded 2 holds
    assert len(saved[0].losses) == save_at
    assert [*saved[0].losses, *resumed[0].losses] == uninterrupted[0].losses
    for result, expected in zip(resumed, uninterrupted, strict=True):
        last_metrics = expected.eval_metrics[-len(result.eval_metrics) :]
        assert_identical(result, replace(expected, eval_metrics=last_metrics))


@pytest.mark.parametrize(("saved_ranks", "resumed_ranks"), [(1, 2), (2, 1), (2, 3)])
def test_trial_resumes_with_another_number_of_ranks(
    train: Train, tmp_path: Path, saved_ranks: int, resumed_ranks: int
) -> None:
    config = make_config(max_train_tokens=31 * 30, epochs=2)
    (uninterrupted,) = train(1, config)
    saved = train(saved_ranks, config, save_at=3, micro_batch_size=1)
    resumed = train(resumed_ranks, config, resume_from=tmp_path, micro_batch_size=2)
    assert {result.micro_batch_size for result in resumed} == {2}  # chosen for the new number of ranks
    assert [*saved[0].losses, *resumed[-1].losses] == pytest.approx(uninterrupted.losses, rel=TRAINING_ROUNDING)
    assert resumed[0].eval_metrics[-1].val_loss == pytest.approx(
        uninterrupted.eval_metrics[-1].val_loss, rel=TRAINING_ROUNDING
    )


def test_each_rank_draws_its_own_dropout_masks_and_rank_0_those_of_one_process(train: Train, corpus: Corpus) -> None:
    window = corpus.train.tokens[:31]
    repeated = replace(corpus, train=replace(corpus.train, tokens=np.tile(window, 2)))
    one_window, two_windows = make_config(max_train_tokens=31, dropout=0.5), make_config(dropout=0.5)
    (expected,) = train(1, one_window)
    assert train(2, one_window)[0].losses == expected.losses  # rank 1 has no window
    losses = train(2, two_windows, corpus=repeated)[0].losses
    assert losses != expected.losses
    assert losses == train(2, two_windows, corpus=repeated)[0].losses


def test_infinite_loss_ends_the_trial_on_all_ranks(train: Train) -> None:
    config = make_config(learning_rate=1e30, max_grad_norm=0.0, warmup_ratio=0.0, epochs=3, lr_schedule="constant")
    results = train(3, config)
    assert [result.diverged for result in results] == [True] * 3
    assert len({len(result.losses) for result in results}) == 1


def test_overflow_on_one_rank_in_float16_skips_the_step_on_all(train: Train) -> None:
    config = make_config(max_train_tokens=31 * 6, batch_size=2)
    expected, *others = train(2, config, precision="float16", overflow_of=(1, 1))
    assert expected.skipped_steps == 1 and not expected.diverged
    assert [math.isfinite(loss) for loss in expected.losses] == [True, False, True]
    for result in others:
        assert_identical(result, expected)
        assert result.skipped_steps == 1


def test_store_listens_on_the_loopback_address_only() -> None:
    stores = create_store(), create_store()
    ports = {store.port for store in stores}
    assert len(ports) == 2
    connections = psutil.Process().net_connections()
    listening = {(link.laddr.ip, link.laddr.port) for link in connections if not link.raddr}
    assert {address for address in listening if address[1] in ports} == {("127.0.0.1", port) for port in ports}


@pytest.mark.parametrize(("device", "gpu"), [("cpu", None), ("cuda", torch.device("cuda", 0))])
def test_a_rank_names_its_gpu_to_nccl(device: str, gpu: torch.device | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows each rank one GPU, number 0; NCCL would take the one of the rank's number where it has to guess."""
    named: list[Any] = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, device_id, **rest: named.append(device_id))
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    store = create_store()
    with join_process_group(1, 2, device, store.port):
        assert named == [gpu]
