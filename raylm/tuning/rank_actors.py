"""Ranks of a trial on several GPUs: the trial's own process, and one actor for each other rank."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylm.data.corpus import Corpus
from raylm.errors import WorkError
from raylm.training import distributed
from raylm.training.distributed import SINGLE_PROCESS, DistributedContext

GRACE_SECONDS = 15.0
"""Time that the first rank has to notice the death of another by itself. Gloo reports it; NCCL waits forever."""


class DeadRankError(WorkError):
    """Death of the process of a rank. Like that of the trial's own process, it is no error of the trial."""


@dataclass(frozen=True)
class RankJob:
    """Training of one trial, as each of its ranks runs it."""

    run_name: str
    train_fn: Callable[..., Iterator[Any]]
    """`train.finetune` with all arguments except `corpus` and `dist_context`."""
    rank_context: Callable[[int], AbstractContextManager[None]]
    """Returns the context in which the process of a rank other than the first trains."""
    world_size: int
    device: str
    """`cpu` or `cuda`."""


class RankActor:
    """Rank other than the first: an actor, so that Ray gives it a GPU and ends it with the trial's process."""

    def train(self, job: RankJob, corpus: Corpus, rank: int, port: int) -> None:
        """Train to the end of the trial. Only the first rank saves and reports.

        Args:
            port: port of the first rank's store.
        """
        with (
            job.rank_context(rank),
            distributed.join_process_group(rank, job.world_size, job.device, port) as dist_context,
        ):
            for _ in job.train_fn(corpus=corpus, dist_context=dist_context):
                pass


@contextlib.contextmanager
def start_rank_actors(
    job: RankJob, corpus: Any, record_error: Callable[[Exception], object]
) -> Iterator[DistributedContext]:
    """Start the other ranks of a trial, and yield this process's context as the first one.

    Args:
        corpus: Ray reference to the corpus.
        record_error: records an error of another rank that this process cannot raise, because it is blocked.

    Raises:
        DeadRankError: if the process of another rank died.
        Exception: an error that another rank raised.
    """
    if job.world_size == 1:
        yield SINGLE_PROCESS
        return
    group = ray.util.get_current_placement_group()
    store = distributed.create_store()
    ranks = range(1, job.world_size)
    actors = [_create_actor(group, rank) for rank in ranks]
    results = [
        actor.train.options(name=f"{job.run_name} rank {rank}").remote(job, corpus, rank, store.port)
        for rank, actor in zip(ranks, actors, strict=True)
    ]
    finished = threading.Event()
    threading.Thread(target=_watch_ranks, args=(results, finished, record_error), daemon=True).start()
    try:
        with distributed.join_process_group(0, job.world_size, job.device, store.port) as dist_context:
            try:
                yield dist_context
            except Exception as error:  # such as gloo's after another rank ended; that rank's own error explains more
                raise _get_error(ray.wait(results, timeout=GRACE_SECONDS)[0]) or error from None
    finally:
        finished.set()
        for actor in actors:  # finished, or blocked in a step that the first rank does not take
            ray.kill(actor)


def _create_actor(group: PlacementGroup, rank: int) -> Any:
    """Return a new actor in the bundle of its rank."""
    bundle = group.bundle_specs[rank]
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
    options = {"num_cpus": bundle["CPU"], "num_gpus": bundle["GPU"], "scheduling_strategy": strategy}
    return ray.remote(**options)(RankActor).remote()


def _watch_ranks(results: list[Any], finished: threading.Event, record_error: Callable[[Exception], object]) -> None:
    """End this process, and with it the attempt, if it stays blocked `GRACE_SECONDS` after another rank failed."""
    pending = results
    while pending:
        ready, pending = ray.wait(pending)
        if (error := _get_error(ready)) and not finished.wait(GRACE_SECONDS):
            try:
                if not isinstance(error, DeadRankError):
                    record_error(error)
            finally:
                os._exit(1)


def _get_error(results: list[Any]) -> Exception | None:
    """Return the error of a finished rank, or None."""
    try:
        ray.get(results)
    except RayTaskError as error:
        cause: Exception = error.cause
        return cause
    except RayError:
        return DeadRankError("the process of another of its GPUs has died")
    return None
