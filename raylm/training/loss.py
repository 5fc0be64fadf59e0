"""Summed cross-entropy of a language model; GPT-2's output head and loss are fused block by block.

B is the batch, T the context length, N the positions, n those of a block, D the model's width, V its vocabulary. The
logits (N, V) of GPT-2 never exist at once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from raylm.data.corpus import IGNORE_INDEX
from raylm.numerics import logits_block_rows
from raylm.training import layers
from raylm.training.device import ABILITIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


FLOAT16_GRADIENT_SCALE = 2.0**8
"""Factor of the gradient of logits in float16, whose smallest value is 6e-8: probabilities of a vocabulary are smaller.
Products with weights of up to 128 do not overflow."""
LOGITS_ALIGNMENT = 64
"""Columns of logits are padded to a multiple of it: with 50,257, matrix products take 1.2 to 1.5 times as long."""
CACHE_BLOCK_ELEMENTS = 2**20
"""Logits of a block that a CPU turns into their gradient at a time, in several passes: 4 MiB, which stay in its cache.
Also the elements of the head's weight that it converts at a time."""


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the summed cross-entropy of `hidden @ weight.T` and the targets, in nats, as a float32 scalar.

    Matrix products use autocast's dtype if autocast is enabled; logits are compared, and sums are taken, in float32.
    """
    if torch.is_grad_enabled():
        return cast(Tensor, _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N))  # type: ignore[no-untyped-call]
    dtype = _matmul_dtype(hidden_ND)
    head = _cast_weight(weight_VD, dtype)
    blocks = _iter_blocks(hidden_ND.to(dtype), head, targets_N, len(weight_VD), has_gradient=False)
    return torch.stack([loss for _, loss, _, _ in blocks]).sum()


def _matmul_dtype(tensor: Tensor) -> torch.dtype:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _cast_weight(weight_VD: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weight of the head for products in a dtype; for logits in bfloat16, minus the mean of its rows.

    That subtracts the same number from all logits of a position, which changes neither the loss nor any gradient.
    GPT-2's logits lie near -112, where the steps of bfloat16 are 0.5: the rounding makes the loss 0.011 nats per token
    too high. Their differences from the mean are an order of magnitude smaller. On a GPU, logits are float32.

    Then rows of zeros follow, up to a multiple of `LOGITS_ALIGNMENT`.
    """
    if dtype == weight_VD.dtype or not weight_VD.is_cpu:
        return weight_VD.to(dtype)
    rows, columns = weight_VD.shape
    result = weight_VD.new_empty(_align(rows), columns, dtype=dtype)
    result[rows:] = 0
    mean_D, size = weight_VD.mean(dim=0), max(1, CACHE_BLOCK_ELEMENTS // columns)
    for target, source in zip(torch.split(result[:rows], size), torch.split(weight_VD, size), strict=True):
        target.copy_(source - mean_D)
    return result


def _align(columns: int) -> int:
    return -(-columns // LOGITS_ALIGNMENT) * LOGITS_ALIGNMENT


def _iter_blocks(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, vocab_size: int, *, has_gradient: bool
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
    """Iterate over blocks of positions, with the same buffers for the logits of each block and for their gradient.

    Yields:
        Slice of the positions; their summed loss; the gradient of the loss with respect to their logits (n, V), in
        float16 times `FLOAT16_GRADIENT_SCALE`, up to a factor per position; that factor (n, 1), or None if it is 1.
    """
    device, columns, on_cpu = hidden_ND.device.type, len(weight_VD), hidden_ND.is_cpu
    rows = logits_block_rows(device, str(hidden_ND.dtype).removeprefix("torch."))
    shape = min(rows, len(hidden_ND)), _align(columns) if ABILITIES[device].has_padded_outputs else columns
    logits_dtype = hidden_ND.dtype if on_cpu else torch.float32
    logits_buffer_nV = hidden_ND.new_empty(shape, dtype=logits_dtype)[:, :columns]
    in_place = logits_dtype == hidden_ND.dtype or not has_gradient
    gradient_buffer_nV = logits_buffer_nV if in_place else hidden_ND.new_empty(shape)[:, :columns]
    for start in range(0, len(hidden_ND), rows):
        block = slice(start, start + rows)
        hidden_nD, targets_n = hidden_ND[block], targets_N[block]
        logits_nV, gradient_nV = logits_buffer_nV[: len(hidden_nD)], gradient_buffer_nV[: len(hidden_nD)]
        if logits_dtype == hidden_ND.dtype:
            torch.mm(hidden_nD, weight_VD.T, out=logits_nV)
        else:
            torch.mm(hidden_nD, weight_VD.T, out_dtype=logits_dtype, out=logits_nV)
        if has_loss_kernel(hidden_ND.device.type):
            from raylm.training import loss_kernel

            gradients = gradient_nV if has_gradient else None
            losses_n = loss_kernel.cross_entropy(logits_nV, targets_n, gradients, _gradient_scale(gradient_nV.dtype))
            yield block, losses_n.sum(), gradient_nV, None
        else:
            values_nV, results_nV = logits_nV[:, :vocab_size], gradient_nV[:, :vocab_size]
            loss, factor_n1 = _block_loss(values_nV, targets_n.unsqueeze(-1), results_nV if has_gradient else None)
            yield block, loss, gradient_nV, factor_n1


def _gradient_scale(dtype: torch.dtype) -> float:
    """Return the factor of the gradient of logits in a dtype."""
    return FLOAT16_GRADIENT_SCALE if dtype == torch.float16 else 1.0


@functools.cache
def has_loss_kernel(device_type: str) -> bool:
    """Return whether the loss of a block is computed by one kernel, which needs a GPU, Triton and a C compiler."""
    return ABILITIES[device_type].has_cuda and layers.has_triton()


def _block_loss(logits_nV: Tensor, targets_n1: Tensor, gradient_nV: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the summed loss of a block and the factor (n, 1) of its gradient, which is written up to that factor.

    In float16, whose range is too small for it, the factor is part of the gradient, and None is returned.

    Args:
        logits_nV: logits, overwritten if they are float32.
        targets_n1: tokens.
        gradient_nV: buffer of the gradient, may be the logits; None: it is not written.
    """
    size = max(1, CACHE_BLOCK_ELEMENTS // logits_nV.shape[1]) if logits_nV.is_cpu else len(logits_nV)
    parts = []
    for start in range(0, len(logits_nV), size):
        rows = slice(start, start + size)
        parts.append(_rows_loss(logits_nV[rows], targets_n1[rows], None if gradient_nV is None else gradient_nV[rows]))
    losses_n1, factor_n1 = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    is_complete = gradient_nV is not None and gradient_nV.dtype == torch.float16
    return losses_n1.sum(), None if is_complete else factor_n1


def _rows_loss(logits_nV: Tensor, targets_n1: Tensor, gradient_nV: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the loss of each row (n, 1) of a block and the factor of its gradient, as `_block_loss`."""
    values_nV = logits_nV.float()  # no copy of float32
    counted_n1, labels_n1 = targets_n1 != IGNORE_INDEX, targets_n1.clamp(min=0)
    picked_n1, largest_n1 = values_nV.gather(1, labels_n1), values_nV.amax(dim=-1, keepdim=True)
    if logits_nV.dtype == torch.float32:
        total_n1 = values_nV.sub_(largest_n1).exp_().sum(dim=-1, keepdim=True)
        one_n1 = total_n1
    else:  # takes less time than exp, and is exact to 20 units of float32's last place
        values_nV = values_nV.softmax(dim=-1)
        total_n1 = values_nV.amax(dim=-1, keepdim=True).reciprocal_()
        one_n1 = torch.ones_like(total_n1)
    losses_n1, factor_n1 = (total_n1.log() + largest_n1 - picked_n1) * counted_n1, counted_n1 / one_n1
    if gradient_nV is not None:  # softmax - one-hot, times `one_n1`
        values_nV.scatter_add_(1, labels_n1, -one_n1)
        if gradient_nV.dtype == torch.float16:
            values_nV.mul_(factor_n1 * FLOAT16_GRADIENT_SCALE)
        gradient_nV.copy_(values_nV)
    return losses_n1, factor_n1


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradients are computed in the forward pass, while the logits of a block exist."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        grad_hidden_ND, grad_weight_VD = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD)
        dtype = _matmul_dtype(hidden_ND)
        hidden_ND, weight_VD, vocab_size = hidden_ND.to(dtype), _cast_weight(weight_VD, dtype), len(weight_VD)
        losses = []
        blocks = _iter_blocks(hidden_ND, weight_VD, targets_N, vocab_size, has_gradient=True)
        for block, loss, grad_nV, factor_n1 in blocks:
            losses.append(loss)
            grad_nD, scaled_nD = grad_nV @ weight_VD, hidden_ND[block]
            if factor_n1 is not None:
                grad_nD, scaled_nD = grad_nD.mul_(factor_n1), (scaled_nD * factor_n1).to(dtype)
            grad_hidden_ND[block] = grad_nD
            _add_product(grad_weight_VD, grad_nV.T, scaled_nD)
        ctx.gradients, ctx.scale = (grad_hidden_ND, grad_weight_VD), _gradient_scale(dtype)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad_hidden_ND, grad_weight_VD), ctx.gradients = ctx.gradients, None  # scaled in place: usable once
        factor = grad_outputs[0] if ctx.scale == 1 else grad_outputs[0] / ctx.scale
        return grad_hidden_ND.mul_(factor), grad_weight_VD.mul_(factor), None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a matrix product to a sum of its own or a wider dtype, without rows that exceed the sum's."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif total.is_cpu and left.dtype == torch.float16:  # sums over positions would overflow
        total.addmm_(left[: len(total)].float(), right.float())
    elif total.is_cpu:  # torch has no such product there; it is fast for padded columns of logits
        total += (left @ right)[: len(total)]
    else:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)


def summed_loss(model: PreTrainedModel, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the summed negative log-likelihood of all targets, in nats, as a float32 scalar."""
    if model.config.model_type == "gpt2":
        hidden_BTD = model.base_model(input_ids=inputs_BT, use_cache=False).last_hidden_state
        weight_VD = cast(Tensor, model.get_output_embeddings().weight)
        return linear_cross_entropy(hidden_BTD.flatten(0, 1), weight_VD, targets_BT.flatten())
    logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
    )
