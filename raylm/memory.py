"""Bytes that a trial needs on its device, and the largest micro-batch that fits. No torch."""

from __future__ import annotations

import ctypes
import sys

from raylm.catalog import Shape

ACTIVATION_BYTES = {"float32": 120, "bfloat16": 80}
"""Saved for the backward pass, per token, layer and unit of width: 112 and 72 bytes counted with
`torch.autograd.graph.saved_tensors_hooks` on GPT-2 with SDPA attention and eager GELU, and the dropout masks."""
ATTENTION_BYTES = {"float32": 8, "bfloat16": 0}
"""Per token, layer, head and position attended to: the probabilities before and after dropout, which attention keeps
where it is not fused, as on a CPU with dropout. With it, the peaks of bench/four_sizes.py are met within 12 %."""
OPTIMIZER_BYTES = {"adafactor": 0, "adamw": 8}
"""State per parameter; Adafactor's rows and columns are some ten MB even for gpt2-xl."""
LOGITS_ROWS = 2048
"""Positions whose logits exist at a time (`models.TRAINING_ROWS`, the larger one)."""
RUNTIME_BYTES = 600 * 2**20
"""A process with torch and transformers, before any model: resident memory on a CPU, the context's on a GPU."""
RESERVE = 0.85
"""Share of a device's memory that is planned with; the rest is the allocator's and the runtime's."""
M_MMAP_THRESHOLD = -3
"""glibc's name for the size from which on a block is mapped by itself (malloc.h)."""
MAPPED_BYTES = 2**20
"""That size where memory is short."""


def training_bytes(shape: Shape, context_length: int, micro_batch_size: int, precision: str, optimizer: str) -> int:
    """Peak bytes of a training step: the runtime, weights, gradients, optimizer, activations, head.

    Args:
        precision: `float32` or `bfloat16`; the weights are float32 in both.
    """
    head = shape.vocabulary * shape.width * 4
    weights = shape.parameters * (4 + 4 + OPTIMIZER_BYTES[optimizer] + (2 if precision == "bfloat16" else 0))
    tokens = context_length * micro_batch_size
    activations = tokens * shape.layers * shape.width * ACTIVATION_BYTES[precision] + tokens * shape.width * 16
    activations += tokens * shape.layers * shape.heads * context_length * ATTENTION_BYTES[precision]
    logits = 3 * 4 * min(tokens, LOGITS_ROWS) * shape.vocabulary
    return RUNTIME_BYTES + weights + activations + logits + 2 * head  # the head's own gradient, the optimizer's update


def micro_batch_size(
    shape: Shape, context_length: int, batch_size: int, precision: str, optimizer: str, available_bytes: float
) -> int:
    """Windows that go through the model at a time: as many as fit, in equal parts of the batch, at least one."""
    sizes = [-(-batch_size // parts) for parts in range(1, batch_size + 1)]
    return next(
        (
            size
            for size in sizes
            if training_bytes(shape, context_length, size, precision, optimizer) <= available_bytes * RESERVE
        ),
        1,
    )


def bucket_bytes(shape: Shape) -> int:
    """What gradients take once more where several ranks exchange them, while a step's micro-batches add up."""
    return shape.parameters * 4


def return_freed_blocks() -> None:
    """Makes the C library give each large block back to the system when it is freed.

    glibc keeps blocks of up to 32 MiB for itself once it has seen them freed, in pieces that the next tensor may not
    fit into: gpt2-xl at micro-batch 2 then takes more than 24 GB on a CPU, where 18 are in use. Mapping costs time, so
    this is for trials whose memory is short. Nothing happens where the library is another one.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
