"""Triton kernel of the cross-entropy of a block of logits: the loss and the gradient of each row in one launch.

n is the number of positions of a block, V the size of the vocabulary. Imported only where Triton is installed.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from raylm.data.corpus import IGNORE_INDEX

BLOCK_COLUMNS = 8192
"""Logits that a program holds at a time; a power of two."""
NUM_WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy_kernel(  # type: ignore[no-untyped-def]
    logits,
    targets,
    losses,
    gradients,
    logits_stride,
    gradients_stride,
    num_columns,
    HAS_GRADIENT: tl.constexpr,
    GRADIENT_SCALE: tl.constexpr,
    IGNORE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute one row per program, in two passes over its logits: the log of the sum, then the gradient."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * logits_stride
    gradients += row * gradients_stride
    target = tl.load(targets + row)
    largest, total = -float("inf"), 0.0
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(logits + columns, mask=columns < num_columns, other=-float("inf"))
        new_largest = tl.maximum(largest, tl.max(values, 0))
        total = total * tl.exp(largest - new_largest) + tl.sum(tl.exp(values - new_largest), 0)
        largest = new_largest
    log_sum = largest + tl.log(total)
    is_counted = target != IGNORE
    picked = tl.load(logits + tl.where(is_counted, target, 0))
    tl.store(losses + row, tl.where(is_counted, log_sum - picked, 0.0))
    if HAS_GRADIENT:
        for start in range(0, num_columns, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            values = tl.load(logits + columns, mask=columns < num_columns, other=-float("inf"))
            gradient = tl.exp(values - log_sum) - tl.where(columns == target, 1.0, 0.0)
            gradient = tl.where(is_counted, gradient * GRADIENT_SCALE, 0.0)
            tl.store(gradients + columns, gradient.to(gradients.dtype.element_ty), mask=columns < num_columns)


def cross_entropy(
    logits_nV: Tensor, targets_n: Tensor, gradients_nV: Tensor | None, gradient_scale: float = 1.0
) -> Tensor:
    """Return the cross-entropy of each position (n,) in nats, 0 where the target is `IGNORE_INDEX`.

    Args:
        logits_nV: logits in float32, rows of any stride.
        targets_n: tokens, in int64.
        gradients_nV: written with softmax - one-hot, in its own dtype; may be the logits themselves. None: none.
        gradient_scale: factor of the gradients.
    """
    losses_n = logits_nV.new_empty(len(logits_nV), dtype=torch.float32)
    gradients = logits_nV if gradients_nV is None else gradients_nV
    kernel: Any = _cross_entropy_kernel
    kernel[(len(logits_nV),)](
        logits_nV,
        targets_n,
        losses_n,
        gradients,
        logits_nV.stride(0),
        gradients.stride(0),
        logits_nV.shape[1],
        HAS_GRADIENT=gradients_nV is not None,
        GRADIENT_SCALE=gradient_scale,
        IGNORE=IGNORE_INDEX,
        BLOCK=min(BLOCK_COLUMNS, triton.next_power_of_2(logits_nV.shape[1])),
        num_warps=NUM_WARPS,
    )
    return losses_n
