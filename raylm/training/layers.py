"""Faster implementations of GPT-2's layers, patched into a loaded transformers model: the same functions.

B is the batch, H the heads, T the context length, D the width of a head; b is B * H, q a block of queries, k the keys
up to the last of them.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from raylm.numerics import QUERY_BLOCK_ROWS

if TYPE_CHECKING:
    from transformers import PreTrainedModel


GRAPHS_PER_MODEL = 16
"""Graphs of a block that a trial may need, for its shapes."""
DROPOUT_LEVELS = 2**16
"""Resolution of the dropout probability: each position compares two random bytes with a threshold."""

GELU_BLOCK_ELEMENTS = 2**18
"""Elements of GELU computed at a time on a CPU, in several passes: 1 MiB, which stays in its cache."""
GELU_FACTORS = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715
"""Factors of x and of its cube in the argument of GELU's sigmoid: 0.5 * (1 + tanh(y)) = sigmoid(2 * y)."""


def patch_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Replace layers of a model in place and return it. Its configuration, and so its checkpoints, stay unchanged."""
    from transformers import AttentionInterface
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):  # eight operations, which save 48 bytes more for the backward pass
                setattr(module, name, Gelu(approximate="tanh"))
            elif type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))
    if model.config.model_type == "gpt2":
        AttentionInterface.register("raylm", causal_attention)
        model.config._attn_implementation = "raylm"
    return model


def has_triton() -> bool:
    """Return whether kernels can be compiled for a GPU, which needs Triton and a C compiler."""
    return importlib.util.find_spec("triton") is not None and any(map(shutil.which, ("gcc", "clang", "cc")))


def can_compile(model: PreTrainedModel) -> bool:
    """Return whether the blocks of a model can be compiled for a GPU."""
    return model.config.model_type == "gpt2" and has_triton()


def compile_blocks(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Compile the blocks of a GPT-2: one compilation for all of them, kept in inductor's cache on disk.

    Dynamo keeps the graphs of all models of a process, up to a limit that is meant for one of them; beyond it, new
    shapes are not compiled. The limit grows with each model.
    """
    import torch._dynamo.config as dynamo  # takes a second

    dynamo.recompile_limit += GRAPHS_PER_MODEL
    dynamo.accumulated_recompile_limit += GRAPHS_PER_MODEL
    for block in model.base_model.h:
        block.compile(backend=backend)


class Gelu(nn.GELU):
    """GELU by tanh, which takes half of torch's time in bfloat16 on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the activations."""
        if not input.is_cpu or input.dtype != torch.bfloat16 or not input.requires_grad:
            return super().forward(input)
        return cast(Tensor, _Gelu.apply(input))  # type: ignore[no-untyped-call]


class _Gelu(torch.autograd.Function):
    """GELU whose derivative is computed, and saved, in the forward pass: both need the same sigmoid.

    Torch computes a tanh in each pass, which takes five times as long as a sigmoid. Like it, this computes in float32.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        hidden = hidden.contiguous()
        result, slope = torch.empty_like(hidden), torch.empty_like(hidden)
        flat = (torch.split(tensor.view(-1), GELU_BLOCK_ELEMENTS) for tensor in (hidden, result, slope))
        linear, cubic = GELU_FACTORS
        for values, result_block, slope_block in zip(*flat, strict=True):
            values = values.float()
            squared = values * values
            sigmoid = (squared * cubic).add_(linear).mul_(values).sigmoid_()
            inner = squared.mul_(3 * cubic).add_(linear).mul_(values)  # derivative of the argument, times the value
            result_block.copy_(values.mul_(sigmoid))
            slope_block.copy_(inner.mul_(torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1)).add_(sigmoid))
        ctx.save_for_backward(slope)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return cast(Tensor, grad_outputs[0] * slope)


class Dropout(nn.Dropout):
    """Dropout whose random numbers take a CPU a seventh of the time of torch's, which draws 64 bits per position."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the states with positions dropped in training, unchanged in evaluation."""
        if not self.training or self.p == 0 or not hidden.is_cpu:
            return super().forward(hidden)
        return (hidden * _keep_mask(hidden.shape, self.p)).mul_(_dropout_scale(self.p))


def _keep_mask(shape: torch.Size | tuple[int, ...], p: float) -> Tensor:
    """Return a uint8 mask, 1 for kept positions, from torch's generator: the same for any number of threads."""
    size = torch.Size(shape).numel()
    random_64 = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None)
    random_16 = random_64.view(torch.int16)[:size].view(shape)
    kept = random_16 >= _drop_threshold(p) - DROPOUT_LEVELS // 2
    return kept.view(torch.uint8)  # converts to floats faster than booleans


def _drop_threshold(p: float) -> int:
    """Return the number of random values, of `DROPOUT_LEVELS`, that drop a position."""
    return min(round(p * DROPOUT_LEVELS), DROPOUT_LEVELS - 1)


def _dropout_scale(p: float) -> float:
    return DROPOUT_LEVELS / (DROPOUT_LEVELS - _drop_threshold(p))


def causal_attention(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention for `transformers.AttentionInterface`: torch's, except in training on a CPU.

    There, torch's attention has no fast kernel with dropout, and takes twice as long in bfloat16 without.

    Returns:
        Mixed values (B, T, H, D), and None for the weights.
    """
    is_short = query_BHTD.dtype == torch.bfloat16 and query_BHTD.requires_grad
    if query_BHTD.is_cpu and (dropout > 0 or is_short):
        heads = [tensor.flatten(0, 1) for tensor in (query_BHTD, key_BHTD, value_BHTD)]
        mixed_bTD = _CausalAttention.apply(*heads, scaling, dropout)  # type: ignore[no-untyped-call]
        mixed_BHTD = cast(Tensor, mixed_bTD).view(query_BHTD.shape)
    else:
        mixed_BHTD = nn.functional.scaled_dot_product_attention(
            query_BHTD, key_BHTD, value_BHTD, dropout_p=dropout, is_causal=True, scale=scaling
        )
    return mixed_BHTD.transpose(1, 2), None


def _iter_query_blocks(
    query_bTD: Tensor, key_bTD: Tensor, scaling: float, weights: Sequence[Tensor] = ()
) -> Iterator[tuple[slice, int, Tensor]]:
    """Iterate over blocks of queries.

    Args:
        weights: attention weights of each block; empty: they are computed.

    Yields:
        Slice of the queries; end of the keys that they see; their attention weights (b, q, k).
    """
    length = query_bTD.shape[1]
    bias_TT = query_bTD.new_full((length, length), -torch.inf).triu_(1)
    for number, start in enumerate(range(0, length, QUERY_BLOCK_ROWS)):
        rows, end = slice(start, start + QUERY_BLOCK_ROWS), min(start + QUERY_BLOCK_ROWS, length)
        if weights:
            yield rows, end, weights[number]
            continue
        keys_bDk = key_bTD[:, :end].transpose(1, 2)
        scores_bqk = torch.baddbmm(bias_TT[rows, :end], query_bTD[:, rows], keys_bDk, alpha=scaling)
        yield rows, end, scores_bqk.softmax(dim=-1)


class _CausalAttention(torch.autograd.Function):
    """Causal attention of query blocks with the keys up to their last one.

    With dropout, it saves weights and masks; without, weights are computed again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, query_bTD: Tensor, key_bTD: Tensor, value_bTD: Tensor, scaling: float, dropout: float
    ) -> Tensor:
        mixed_bTD = torch.empty_like(value_bTD)
        weights, kept = [], []
        for rows, end, weights_bqk in _iter_query_blocks(query_bTD, key_bTD, scaling):
            if dropout > 0:
                weights.append(weights_bqk)
                kept.append(_keep_mask(weights_bqk.shape, dropout))
                weights_bqk = weights_bqk * kept[-1]
            mixed_bTD[:, rows] = torch.bmm(weights_bqk, value_bTD[:, :end])
        ctx.save_for_backward(query_bTD, key_bTD, value_bTD, *weights, *kept)
        ctx.scaling, ctx.scale = scaling, _dropout_scale(dropout)
        return mixed_bTD if ctx.scale == 1 else mixed_bTD.mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query_bTD, key_bTD, value_bTD, *saved = ctx.saved_tensors
        weights, kept = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        grad_bTD = grad_outputs[0] * ctx.scale
        grad_query_bTD = torch.empty_like(query_bTD)
        grad_key_bTD, grad_value_bTD = torch.zeros_like(key_bTD), torch.zeros_like(value_bTD)
        blocks = _iter_query_blocks(query_bTD, key_bTD, ctx.scaling, weights)
        for number, (rows, end, weights_bqk) in enumerate(blocks):
            grad_bqD = grad_bTD[:, rows]
            grad_weights_bqk = torch.bmm(grad_bqD, value_bTD[:, :end].transpose(1, 2))
            mixing_bqk = weights_bqk
            if kept:
                mixing_bqk = weights_bqk * kept[number]
                grad_weights_bqk.mul_(kept[number])
            grad_value_bTD[:, :end].baddbmm_(mixing_bqk.transpose(1, 2), grad_bqD)
            grad_scores_bqk = torch._softmax_backward_data(grad_weights_bqk, weights_bqk, -1, weights_bqk.dtype)
            grad_query_bTD[:, rows] = torch.bmm(grad_scores_bqk, key_bTD[:, :end])
            grad_key_bTD[:, :end].baddbmm_(grad_scores_bqk.transpose(1, 2), query_bTD[:, rows])
        return grad_query_bTD.mul_(ctx.scaling), grad_key_bTD.mul_(ctx.scaling), grad_value_bTD, None, None
