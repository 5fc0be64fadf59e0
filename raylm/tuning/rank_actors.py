"""The other ranks of a trial on several GPUs: actors in the bundles of its placement group, which end with it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylm.data.corpus import Corpus
from raylm.errors import WorkError
from raylm.training import distributed
from raylm.training.distributed import SINGLE_PROCESS, DistributedContext
from raylm.training.train import Evaluation

GRACE_SECONDS = 15.0
"""Time that the first rank has to notice by itself that another has ended. Gloo tells of it; NCCL waits for ever."""

TrainFn = Callable[..., Iterator[Evaluation]]
"""`train.finetune` of a trial, but for its corpus and its ranks."""
RankContext = Callable[[int], AbstractContextManager[None]]
"""What the process of a rank works within."""


class DeadRankError(WorkError):
    """The process of a rank has died, which is no error of its trial, as when the trial's own process dies."""


class RankActor:
    """A rank but the first. Runs as an actor, so that Ray gives it its GPU and ends it with the trial's process."""

    def train(
        self,
        train_fn: TrainFn,
        corpus: Corpus,
        rank_context: RankContext,
        rank: int,
        world_size: int,
        device: str,
        port: int,
    ) -> None:
        """Trains to the end of the trial; the first rank saves and reports."""
        with rank_context(rank), distributed.join_process_group(rank, world_size, device, port) as group:
            for _ in train_fn(corpus=corpus, dist_context=group):
                pass


@contextlib.contextmanager
def start_rank_actors(
    run_name: str,
    train_fn: TrainFn,
    corpus: Any,
    rank_context: RankContext,
    world_size: int,
    device: str,
    record_error: Callable[[Exception], None],
) -> Iterator[DistributedContext]:
    """This process as the first rank of a trial, the others at work beside it.

    Args:
        run: the name of the trial.
        corpus: Ray's reference to it.
        note: takes down what a rank raised, where this process cannot raise it.

    Raises:
        DeadRankError: if the process of another rank died.
        Exception: what another rank raised.
    """
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    group = ray.util.get_current_placement_group()
    store = distributed.create_store()
    peers = [_create_actor(group, rank) for rank in range(1, world_size)]
    ends = [
        peer.train.options(name=f"{run_name} rank {rank}").remote(
            train_fn, corpus, rank_context, rank, world_size, device, store.port
        )
        for rank, peer in enumerate(peers, start=1)
    ]
    left = threading.Event()
    threading.Thread(target=_watch_ranks, args=(ends, left, record_error), daemon=True).start()
    try:
        with distributed.join_process_group(0, world_size, device, store.port) as this:
            try:
                yield this
            except Exception as error:  # as gloo's, when another rank has ended; while this one stays, none ends of it
                raise _get_error(ray.wait(ends, timeout=GRACE_SECONDS)[0]) or error from None
    finally:
        left.set()
        for peer in peers:  # at its end, or waiting for a step that will not come
            ray.kill(peer)


def _create_actor(group: PlacementGroup, rank: int) -> Any:
    """A peer in the bundle of its rank."""
    bundle = group.bundle_specs[rank]
    there = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
    options = {"num_cpus": bundle["CPU"], "num_gpus": bundle["GPU"], "scheduling_strategy": there}
    return ray.remote(**options)(RankActor).remote()


def _watch_ranks(pending_refs: list[Any], finished: threading.Event, record_error: Callable[[Exception], None]) -> None:
    """Ends this process, and with it the trial's attempt, where it still waits for a rank that has ended badly."""
    while pending_refs:
        ended, pending_refs = ray.wait(pending_refs)
        if (error := _get_error(ended)) and not finished.wait(GRACE_SECONDS):
            try:
                if not isinstance(error, DeadRankError):
                    record_error(error)
            finally:
                os._exit(1)


def _get_error(ready_refs: list[Any]) -> Exception | None:
    """What a rank raised that has ended, if it did."""
    try:
        ray.get(ready_refs)
    except RayTaskError as error:
        cause: Exception = error.cause
        return cause
    except RayError:
        return DeadRankError("the process of another of its GPUs has died")
    return None
