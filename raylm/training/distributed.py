"""The ranks that train one trial together, a process each: what is whose, what they add up, what they agree on. No Ray.

Every rank holds the whole model and takes its share of each batch's windows. Their gradients are added up, so that all
make the same step and hold the same weights, bit for bit.
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
from raylm.training.loss import summed_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
LOOPBACK = "127.0.0.1"
"""The ranks of a trial are on one machine."""
RANK_TIMEOUT = datetime.timedelta(hours=1)
"""Time that a rank waits for another, as while the first one writes a checkpoint into a slow storage. A rank that dies
is noticed by other means."""


@dataclass(frozen=True)
class DistributedContext:
    """The place of this process among those that train a trial. One that is alone exchanges nothing."""

    rank: int = 0
    """From 0 to size - 1; the first one saves and reports."""
    world_size: int = 1
    device: str = "cpu"

    def rank_windows(self, indices: WindowIndices) -> WindowIndices:
        """This rank's windows of those with these numbers; none, where they are fewer than the ranks."""
        return indices[self.rank :: self.world_size]

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of all ranks' values, in their place. All ranks must come here."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, value: bool) -> bool:
        """The first rank's answer, for all. All ranks must come here."""
        if self.world_size == 1:
            return value
        answers = torch.tensor([value], dtype=torch.uint8, device=self.device)
        dist.broadcast(answers, src=0)
        return bool(answers.item())

    def build_loss(self, model: PreTrainedModel) -> nn.Module:
        """`models.summed_loss` of a model as a module, whose gradients are then the mean of those of all ranks.

        Buckets of gradients are added up while the backward pass goes on. Looking for parameters that a window does not
        reach leaves the buckets as they are from the first step on, where they would be laid out anew after it: a
        trial resumed in the middle adds up in the same order as one that was not.
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
    """Surrounds a micro-batch's forward and backward pass: gradients are exchanged in the last one of a step alone."""
    if isinstance(loss_fn, DistributedDataParallel) and not is_last:
        return loss_fn.no_sync()
    return contextlib.nullcontext()


def create_store() -> TCPStore:
    """Where ranks find each other, while it is kept: at a port that nobody else has, open to this machine alone."""
    listening = socket.create_server((LOOPBACK, 0))
    port = listening.getsockname()[1]
    return TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())


@contextlib.contextmanager
def join_process_group(rank: int, world_size: int, device: str, port: int) -> Iterator[DistributedContext]:
    """This process as a rank, from when all are there.

    Args:
        port: of the meeting place.
    """
    store = TCPStore(LOOPBACK, port, is_master=False)
    dist.init_process_group(BACKENDS[device], store=store, rank=rank, world_size=world_size, timeout=RANK_TIMEOUT)
    try:
        yield DistributedContext(rank, world_size, device)
    finally:  # a rank may leave before the others, or after they died: a shutdown would wait for them
        dist.distributed_c10d._abort_process_group()
