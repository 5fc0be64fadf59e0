"""Numbers of Adafactor, and the update of a stack of parameters of equal shape by operations of torch.

S is the number of parameters of a stack; R and C are the rows and columns of a matrix, N the elements of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Number = float | Tensor
"""Number of a step: a Python float, or a float32 scalar on the device, which a CUDA graph reads at each launch."""

DECAY = 0.8
"""Exponent d of the second moment's decay: the old value has the weight 1 - step^-d."""
EPS = 1e-30
"""Added to squared gradients, to avoid a division by zero."""
CLIP = 1.0
"""Maximum root mean square of an update, in units of the learning rate."""


@dataclass(frozen=True)
class StackUpdate:
    """Parameters of one shape to update, and the numbers of the step."""

    parameters: Sequence[Tensor]
    gradients: Sequence[Tensor]
    moments: Sequence[Tensor]
    """Means of rows (S, ..., R) and of columns (S, ..., C) of matrices, or the second moment (S, N) of vectors."""
    lerp_weight: Tensor
    """Weight of the new second moment, a scalar."""
    lr: Number
    """Learning rate."""
    weight_decay: float


def clip_lr(lr: Number, mean_square: Tensor) -> Tensor:
    """Return the learning rate, reduced so that an update of this mean square is clipped to `CLIP`."""
    return (mean_square.sqrt() / CLIP).clamp_(min=1.0).reciprocal_() * lr  # torch divides a float in this way too


def update_stack(stack: StackUpdate, found_inf: Tensor | None = None) -> None:
    """Update second moments and parameters in place; unless `found_inf` is 0, a scalar, to what they were."""
    is_skipped = None if found_inf is None else found_inf != 0
    if stack.weight_decay:
        decay = stack.weight_decay * stack.lr
        decayed = torch._foreach_mul(list(stack.parameters), decay if is_skipped is None else decay * ~is_skipped)
        torch._foreach_sub_(list(stack.parameters), decayed)
    updates = torch.stack(list(stack.gradients))
    update: Callable[..., None] = _update_vectors if len(stack.moments) == 1 else _update_matrices
    before = [] if is_skipped is None else [moment.clone() for moment in stack.moments]
    update(updates, *stack.moments, stack.lr, stack.lerp_weight)
    if is_skipped is not None:
        updates.masked_fill_(is_skipped, 0.0)
        for moment, old in zip(stack.moments, before, strict=True):
            moment.copy_(torch.where(is_skipped, old, moment))
    torch._foreach_sub_(list(stack.parameters), updates.unbind())


def _update_vectors(grads_SN: Tensor, second_moment_SN: Tensor, lr: Number, lerp_weight: Number) -> None:
    """Update the running second moments of S vectors, and replace their gradients by what is to be subtracted."""
    second_moment_SN.lerp_(grads_SN.square().add_(EPS), lerp_weight)
    grads_SN.mul_(second_moment_SN.rsqrt())
    mean_square_S = grads_SN.square().flatten(1).mean(dim=-1)
    grads_SN.mul_(clip_lr(lr, mean_square_S).view(-1, *[1] * (grads_SN.dim() - 1)))


def _update_matrices(grads: Tensor, row_moment: Tensor, column_moment: Tensor, lr: Number, lerp_weight: Number) -> None:
    """Update the factored second moments of S matrices, and replace their gradients by what is to be subtracted.

    Norms stand for the means of squares, so that no second tensor of the size of the gradients is allocated.

    Args:
        grads: gradients (S, ..., R, C).
        row_moment: means of rows (S, ..., R).
        column_moment: means of columns (S, ..., C).
    """
    num_rows, num_columns = grads.shape[-2:]
    norm = torch.linalg.vector_norm
    row_moment.lerp_(norm(grads, dim=-1).square_().div_(num_columns).add_(EPS), lerp_weight)
    column_moment.lerp_(norm(grads, dim=-2).square_().div_(num_rows).add_(EPS), lerp_weight)
    row_factor = (row_moment / row_moment.mean(dim=-1, keepdim=True)).rsqrt_()
    grads.mul_(column_moment.rsqrt().unsqueeze(-2))
    mean_square_S = (norm(grads, dim=-1) * row_factor).square_().flatten(1).mean(dim=-1).div_(num_columns)
    clipped = clip_lr(lr, mean_square_S).view(-1, *[1] * (row_factor.dim() - 1))
    grads.mul_((row_factor * clipped).unsqueeze(-1))
