"""Arguments of `finetune` beside the trial: where and how it runs, and what it calls back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from raylm.results.progress import MicroBatching, StepMetrics


def _halve(micro_batching: MicroBatching) -> MicroBatching | None:
    """Return half the windows, then recomputed activations; None if there is none."""
    return micro_batching.next_smaller


@dataclass(frozen=True)
class ExecutionOptions:
    """Device, precision and micro-batching of a trial: how it is computed. The config decides what."""

    device: str = "cpu"
    """Type of the device: `cpu`, `cuda` or `mps`."""
    precision: str = "float32"
    """`float32`, `bfloat16` or `float16` (weights, loss and optimizer state are float32 in all of them)."""
    micro_batching: MicroBatching | None = None
    """Micro-batches of one rank; None: all its windows of a batch at once. A resumed trial keeps its recorded
    micro-batching if its number of ranks is the same."""
    micro_batching_limit: MicroBatching | None = None
    """Upper limit of the micro-batching, also of a resumed trial's: similar trials ran out of memory above it."""
    next_smaller: Callable[[MicroBatching], MicroBatching | None] = _halve
    """Returns the micro-batching to continue with after memory ran out; None: there is none that needs less."""
    min_steps_to_compile: int | None = None
    """Optimizer steps of a trial from which its blocks and its optimizer are compiled for a GPU; None: never."""


def _ignore(_: object) -> None:
    """Do nothing."""


def _never() -> bool:
    """Return False."""
    return False


@final
@dataclass(frozen=True)
class TrainingHooks:
    """Callbacks of the training loop; each defaults to a no-op."""

    on_step: Callable[[StepMetrics], None] = _ignore
    """Called with the metrics of the last step whenever the loss is read (every step on a CPU, every tenth on a
    GPU)."""
    on_out_of_memory: Callable[[MicroBatching], None] = _ignore
    """Called with the smaller micro-batching a trial falls back to after running out of memory."""
    on_initial_loss: Callable[[float, str], None] | None = None
    """Called by the first rank with the val loss before the first step, in nats per token, and its precision; None: it
    is not computed."""
    is_checkpoint_due: Callable[[], bool] = _never
    """Returns True if a checkpoint is due before the next evaluation; polled whenever the loss is read. With several
    ranks, the answer of the first one counts."""
