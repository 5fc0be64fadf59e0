"""Data-parallel ranks of a trial, one process each: partition of batches, reductions, process group. No Ray.

Every rank holds the whole model and processes its windows of each batch. Gradients are averaged, so that all ranks make
the same step and hold the same weights, bit for bit.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from raylm.data.corpus import WindowIndices
from raylm.training.device import ABILITIES
from raylm.training.loss import summed_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


LOOPBACK = "127.0.0.1"
"""Address of the ranks, which are on one machine."""
RANK_TIMEOUT = datetime.timedelta(hours=1)
"""Time that a rank waits for another one, as while rank 0 writes a checkpoint to a slow storage. The death of a rank is
detected by other means."""


@dataclass(frozen=True)
class DistributedContext:
    """Rank of this process among those that train a trial, and their collective operations: no-ops for a single one."""

    rank: int = 0
    """Number of this rank, from 0 to world_size - 1; rank 0 saves and reports."""
    world_size: int = 1
    """Number of ranks."""
    device: str = "cpu"

    def rank_windows(self, indices: WindowIndices) -> WindowIndices:
        """Return this rank's part of the indices of a batch; empty if there are fewer windows than ranks."""
        return indices[self.rank :: self.world_size]

    def all_reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks in place and return it. All ranks must call this."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, value: bool) -> bool:
        """Return the value that rank 0 passes. All ranks must call this."""
        if self.world_size == 1:
            return value
        values = torch.tensor([value], dtype=torch.uint8, device=self.device)
        dist.broadcast(values, src=0)
        return bool(values.item())

    def build_loss(self, model: PreTrainedModel) -> nn.Module:
        """Return `loss.summed_loss` of a model as a module whose gradients are averaged over all ranks.

        Buckets of gradients are reduced during the backward pass. `find_unused_parameters` keeps the buckets as they
        are, which DDP would otherwise rebuild after the first step: a resumed trial then sums in the same order as an
        uninterrupted one.
        """
        loss = _SummedLoss(model)
        if self.world_size == 1:
            return loss
        return DistributedDataParallel(loss, gradient_as_bucket_view=True, find_unused_parameters=True)


SINGLE_PROCESS = DistributedContext()


class _SummedLoss(nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return summed_loss(self.model, inputs_BT, targets_BT)


def gradient_sync(loss_fn: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context for a micro-batch's forward and backward pass; only the last one of a step reduces gradients."""
    if isinstance(loss_fn, DistributedDataParallel) and not is_last:
        return loss_fn.no_sync()
    return contextlib.nullcontext()


def create_store() -> TCPStore:
    """Return a store for the ranks' rendezvous, on a free port of the loopback address; keep it while they run."""
    server = socket.create_server((LOOPBACK, 0))
    port = server.getsockname()[1]
    return TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=server.detach())


@contextlib.contextmanager
def join_process_group(rank: int, world_size: int, device: str, port: int) -> Iterator[DistributedContext]:
    """Join the process group of a trial as one rank; returns when all ranks have joined.

    Args:
        rank: number of this rank, from 0.
        world_size: number of ranks.
        device: `cpu` or `cuda`.
        port: port of the store from `create_store`.
    """
    store = TCPStore(LOOPBACK, port, is_master=False)
    # without it, NCCL takes the GPU of a rank's number where it has to guess; Ray shows each rank one, its own
    gpu = torch.device("cuda", torch.cuda.current_device()) if device == "cuda" else None
    dist.init_process_group(
        ABILITIES[device].process_group,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=RANK_TIMEOUT,
        device_id=gpu,
    )
    try:
        yield DistributedContext(rank, world_size, device)
    finally:  # abort, since a shutdown would wait for other ranks, which may still run or have died
        dist.distributed_c10d._abort_process_group()
