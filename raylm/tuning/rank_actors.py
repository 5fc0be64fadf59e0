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
from raylm.training.distributed import ALONE, Ranks
from raylm.training.train import Evaluation

GRACE_SECONDS = 15.0
"""Time that the first rank has to notice by itself that another has ended. Gloo tells of it; NCCL waits for ever."""

Work = Callable[..., Iterator[Evaluation]]
"""`train.finetune` of a trial, but for its corpus and its ranks."""
Within = Callable[[int], AbstractContextManager[None]]
"""What the process of a rank works within."""


class DeadRankError(WorkError):
    """The process of a rank has died, which is no error of its trial, as when the trial's own process dies."""


class Peer:
    """A rank but the first. Runs as an actor, so that Ray gives it its GPU and ends it with the trial's process."""

    def train(self, work: Work, corpus: Corpus, within: Within, rank: int, size: int, device: str, port: int) -> None:
        """Trains to the end of the trial; the first rank saves and reports."""
        with within(rank), distributed.joined(rank, size, device, port) as group:
            for _ in work(corpus=corpus, ranks=group):
                pass


@contextlib.contextmanager
def joined(
    run: str, work: Work, corpus: Any, within: Within, size: int, device: str, note: Callable[[Exception], None]
) -> Iterator[Ranks]:
    """This process as the first rank of a trial, the others at work beside it.

    Args:
        run: the name of the trial.
        corpus: Ray's reference to it.
        note: takes down what a rank raised, where this process cannot raise it.

    Raises:
        DeadRankError: if the process of another rank died.
        Exception: what another rank raised.
    """
    if size == 1:
        yield ALONE
        return
    group = ray.util.get_current_placement_group()
    store = distributed.meeting_place()
    peers = [_actor(group, rank) for rank in range(1, size)]
    ends = [
        peer.train.options(name=f"{run} rank {rank}").remote(work, corpus, within, rank, size, device, store.port)
        for rank, peer in enumerate(peers, start=1)
    ]
    left = threading.Event()
    threading.Thread(target=_watch, args=(ends, left, note), daemon=True).start()
    try:
        with distributed.joined(0, size, device, store.port) as this:
            try:
                yield this
            except Exception as error:  # as gloo's, when another rank has ended; while this one stays, none ends of it
                raise _raised(ray.wait(ends, timeout=GRACE_SECONDS)[0]) or error from None
    finally:
        left.set()
        for peer in peers:  # at its end, or waiting for a step that will not come
            ray.kill(peer)


def _actor(group: PlacementGroup, rank: int) -> Any:
    """A peer in the bundle of its rank."""
    bundle = group.bundle_specs[rank]
    there = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank)
    options = {"num_cpus": bundle["CPU"], "num_gpus": bundle["GPU"], "scheduling_strategy": there}
    return ray.remote(**options)(Peer).remote()


def _watch(ends: list[Any], left: threading.Event, note: Callable[[Exception], None]) -> None:
    """Ends this process, and with it the trial's attempt, where it still waits for a rank that has ended badly."""
    while ends:
        ended, ends = ray.wait(ends)
        if (error := _raised(ended)) and not left.wait(GRACE_SECONDS):
            try:
                if not isinstance(error, DeadRankError):
                    note(error)
            finally:
                os._exit(1)


def _raised(ended: list[Any]) -> Exception | None:
    """What a rank raised that has ended, if it did."""
    try:
        ray.get(ended)
    except RayTaskError as error:
        cause: Exception = error.cause
        return cause
    except RayError:
        return DeadRankError("the process of another of its GPUs has died")
    return None
