"""Trials in the place of raylm's own, and ranks of trials: what Ray's workers import in tests."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from raylm.results.progress import StepMetrics
from raylm.results.storage import Folder
from raylm.training.distributed import DistributedContext
from raylm.training.train import finetune
from raylm.tuning import rank_actors, trainable
from raylm.tuning.prepare import LaunchContext
from raylm.tuning.rank_actors import RankJob
from raylm.tuning.reporting import TrialGauges

LEAK_FRACTION = 0.0005
"""Fraction of its memory that a trial's process may grow by in tests."""
RAN_OUT_FILE = "ran-out"
"""File in the results folder with the size of each micro-batch for which memory ran out."""
LEAKED: list[Any] = []
RANK_CONTEXT = trainable._rank_context


def train_and_leak(config: dict[str, Any], context: LaunchContext) -> None:
    """Train a trial, and keep 256 MiB in its process."""
    LEAKED.append(np.ones(2**25))
    vars(trainable)["MAX_LEAK_FRACTION"] = LEAK_FRACTION
    trainable.train_gpt2(config, context)


# ---- memory for one window ----------------------------------------------------------------------------------------


def train_with_little_memory(config: dict[str, Any], context: LaunchContext) -> None:
    """Train a trial whose ranks have memory for one window of a batch."""
    limit_memory(context)
    trainable._rank_context = rank_context_with_little_memory
    trainable.train_gpt2(config, context)


@contextlib.contextmanager
def rank_context_with_little_memory(context: LaunchContext, run_name: str, rank: int) -> Iterator[None]:
    """Enter the context of another rank, with as little memory."""
    limit_memory(context)
    with RANK_CONTEXT(context, run_name, rank):
        yield


@functools.cache
def limit_memory_to_a_window(file: Path) -> None:
    """Let this process run out of memory for more than a window, and write down for how many it did."""

    def forward(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, torch.nn.LayerNorm) and module.training and len(inputs[0]) > 1:
            with file.open("a") as opened:
                print(len(inputs[0]), file=opened)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    torch.nn.modules.module.register_module_forward_pre_hook(forward)


def limit_memory(context: LaunchContext) -> None:
    """Limit the memory of this process, once."""
    assert isinstance(context.storage, Folder)
    limit_memory_to_a_window(context.storage.path / RAN_OUT_FILE)


# ---- a process that dies ------------------------------------------------------------------------------------------

ATTEMPTS_FILE = "attempts"
"""File in the results folder with the seed of each attempt's trial."""


def train_and_die(config: dict[str, Any], context: LaunchContext) -> None:
    """Train a trial whose process dies: of seed 0 at once, of seed 1 after each checkpoint but the last."""
    assert isinstance(context.storage, Folder)
    seed = config["seed"]
    with (context.storage.path / ATTEMPTS_FILE).open("a") as file:
        print(seed, file=file)

    def die(*arguments: Any, **options: Any) -> Iterator[Any]:
        for evaluation in finetune(*arguments, **options):
            if seed == 0:
                os._exit(1)
            yield evaluation
            if not evaluation.trainer.progress.is_complete:
                time.sleep(2)  # the checkpoint is reported meanwhile
                os._exit(1)

    vars(trainable)["finetune"] = die
    trainable.train_gpt2(config, context)


# ---- a rank that fails --------------------------------------------------------------------------------------------

RANK_ERROR = "the second rank cannot continue"


def train_until_the_second_rank_fails(corpus: Any, dist_context: DistributedContext, stuck: bool) -> Iterator[Any]:
    """Raise on the second rank; on the first, wait for it or, if `stuck`, for ten minutes."""
    if dist_context.rank == 1:
        raise ValueError(RANK_ERROR)
    if stuck:
        time.sleep(600)  # as in a collective of NCCL
    yield dist_context.all_reduce(torch.ones(1))


class FirstRank:
    """Actor in which the first rank of a trial runs."""

    def train(self, stuck: bool, error_file: Path) -> None:
        """Start the second rank and train beside it; an error that cannot be raised here goes into the file."""
        train = functools.partial(train_until_the_second_rank_fails, stuck=stuck)
        job = RankJob("run", train, lambda rank: contextlib.nullcontext(), 2, "cpu")
        with rank_actors.start_rank_actors(
            job, ray.put(0), lambda error: error_file.write_text(repr(error))
        ) as dist_context:
            list(train(corpus=0, dist_context=dist_context))


# ---- metrics ------------------------------------------------------------------------------------------------------


def export_metrics(sweep_name: str, run_name: str) -> None:
    """Set the gauges of a running trial again and again, as trials do after each step."""
    gauges = TrialGauges(sweep_name, run_name, "cpu")
    gauges.update_losses({"val_loss": 3.5, "adj_val_loss": 4.5})
    while True:
        gauges.update_step(StepMetrics(5, 10, 3.25, 1000, 250.0))
        time.sleep(0.5)
