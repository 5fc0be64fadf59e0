"""Summed cross-entropy of a language model; GPT-2's output head and loss are fused block by block.

B is the batch, T the context length, N the positions, n those of a block, D the model's width, V its vocabulary. The
logits (N, V) of GPT-2 never exist at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from raylm.data.corpus import IGNORE_INDEX
from raylm.numerics import LOGITS_BLOCK_ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


LOGITS_ALIGNMENT = 64
"""Stride of a row of logits is a multiple of it: with a stride of 50,257 the matrix product takes 1.5 times as long."""


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the summed cross-entropy of `hidden @ weight.T` and the targets, in nats, as a float32 scalar.

    Matrix products use autocast's dtype if autocast is enabled; sums are float32.
    """
    if torch.is_grad_enabled():
        return cast(Tensor, _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N))  # type: ignore[no-untyped-call]
    dtype = _matmul_dtype(hidden_ND)
    blocks = _iter_blocks(hidden_ND.to(dtype), weight_VD.to(dtype), targets_N)
    return torch.stack([loss for _, loss, _, _ in blocks]).sum()


def _matmul_dtype(tensor: Tensor) -> torch.dtype:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def _iter_blocks(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Iterate over blocks of positions, with one buffer for the logits of a block and then for their gradient.

    Yields:
        Slice of the positions; their summed loss; the gradient of the loss with respect to their logits (n, V), up to a
        factor per position; that factor (n, 1).
    """
    rows, columns = LOGITS_BLOCK_ROWS[hidden_ND.device.type], len(weight_VD)
    padded = -(-columns // LOGITS_ALIGNMENT) * LOGITS_ALIGNMENT
    buffer_nV = hidden_ND.new_empty(min(rows, len(hidden_ND)), padded)[:, :columns]
    for start in range(0, len(hidden_ND), rows):
        block = slice(start, start + rows)
        hidden_nD, targets_n1 = hidden_ND[block], targets_N[block].unsqueeze(-1)
        product_nV = torch.mm(hidden_nD, weight_VD.T, out=buffer_nV[: len(hidden_nD)])
        logits_nV = product_nV.float()  # no copy of float32
        counted_n1, labels_n1 = targets_n1 != IGNORE_INDEX, targets_n1.clamp(min=0)
        picked_n1, largest_n1 = logits_nV.gather(1, labels_n1), logits_nV.amax(dim=-1, keepdim=True)
        total_n1 = logits_nV.sub_(largest_n1).exp_().sum(dim=-1, keepdim=True)
        loss = ((total_n1.log() + largest_n1 - picked_n1) * counted_n1).sum()
        # softmax - one-hot = (exp(logit - largest) - total * one-hot) / total
        logits_nV.scatter_add_(1, labels_n1, -total_n1)
        yield block, loss, product_nV.copy_(logits_nV), counted_n1 / total_n1


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradients are computed in the forward pass, while the logits of a block exist."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        grad_hidden_ND, grad_weight_VD = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD)
        dtype = _matmul_dtype(hidden_ND)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        losses = []
        for block, loss, grad_nV, factor_n1 in _iter_blocks(hidden_ND, weight_VD, targets_N):
            losses.append(loss)
            grad_hidden_ND[block] = (grad_nV @ weight_VD).mul_(factor_n1)
            scaled_nD = (hidden_ND[block] * factor_n1).to(dtype)
            if dtype == grad_weight_VD.dtype:
                grad_weight_VD.addmm_(grad_nV.T, scaled_nD)
            else:
                grad_weight_VD += grad_nV.T @ scaled_nD
        ctx.gradients = grad_hidden_ND, grad_weight_VD
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad_hidden_ND, grad_weight_VD), ctx.gradients = ctx.gradients, None  # scaled in place: usable once
        return grad_hidden_ND.mul_(grad_outputs[0]), grad_weight_VD.mul_(grad_outputs[0]), None


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
