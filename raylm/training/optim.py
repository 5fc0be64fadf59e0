"""Adafactor with an absolute step, AdamW, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn

from raylm.config.trial import TrialConfig

LerpWeight = float | Tensor
"""Of the new in a running mean."""

ADAFACTOR_DECAY = 0.8
"""The share of the old second moment is 1 - step^-0.8."""
ADAFACTOR_EPS = 1e-30
"""Added to squared gradients, so that a gradient of zero divides nothing by zero."""
ADAFACTOR_CLIP = 1.0
"""Largest root mean square of a step, in units of the learning rate."""

CACHE_BLOCK_ELEMENTS = 2**19
"""A part of a matrix that a processor's cache holds, several times."""


class Adafactor(torch.optim.Optimizer):
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) whose step has the size of the learning rate.

    No parameter scaling, no relative step, no momentum: what transformers calls
    `Adafactor(scale_parameter=False, relative_step=False)`. `torch.optim.Adafactor` always scales the step by the
    root mean square of the parameter and is another optimizer at the same rate.

    The second moment of a matrix is kept as the means of its rows and columns, in float32. Nothing waits for the
    device.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, compiled: bool = False) -> None:
        """As torch's optimizers.

        Args:
            compiled: fuse the operations on a parameter with `torch.compile`, once for all shapes.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.compiled = compiled
        self._update_vector, self._update_matrix = _update_vector, _update_matrix
        if compiled:
            self._update_vector = torch.compile(_update_vector, dynamic=True)
            self._update_matrix = torch.compile(_update_matrix, dynamic=True)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step on all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    if group["weight_decay"]:
                        parameter.sub_(parameter, alpha=group["weight_decay"] * group["lr"])
                    self._update_parameter(parameter, group["lr"])
        return loss

    def _update_parameter(self, parameter: Tensor, lr: float) -> None:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state and grad.dim() < 2:
            state.update(step=0, second_moment=torch.zeros_like(grad))
        elif not state:
            state.update(step=0, row=torch.zeros_like(grad[..., 0]), column=torch.zeros_like(grad[..., 0, :]))
        state["step"] += 1
        share = float(state["step"]) ** -ADAFACTOR_DECAY
        fresh: LerpWeight = grad.new_full((), share) if self.compiled else share  # a number would be compiled in
        value = parameter.detach()  # the shape of a parameter would be, too
        if grad.dim() < 2:
            self._update_vector(value, grad, state["second_moment"], lr, fresh)
        else:
            self._update_matrix(value, grad, state["row"], state["column"], lr, fresh)


def _update_vector(param: Tensor, grad: Tensor, second_moment: Tensor, lr: float, lerp_weight: LerpWeight) -> None:
    """Subtracts the gradient over the root of its second moment, to whose running mean it adds a share of `fresh`."""
    second_moment.lerp_(grad.square().add_(ADAFACTOR_EPS), lerp_weight)
    update = second_moment.rsqrt().mul_(grad)
    param.sub_(update.mul_(_clip_lr(lr, update.square().mean())))


def _update_matrix(
    param: Tensor, grad: Tensor, row_moment: Tensor, column_moment: Tensor, lr: float, lerp_weight: float | Tensor
) -> None:
    """The same, the second moment (..., R, C) being the product of the means of its rows (..., R) and columns (..., C).

    Three times through the gradient, in blocks of rows that a processor's cache holds, so that no tensor of the size of
    the parameter is made: for the moments, for the size of the update, for the update.
    """
    length = grad.shape[-2]
    whole = torch.compiler.is_compiling() or not grad.is_cpu
    size = length if whole else max(1, CACHE_BLOCK_ELEMENTS * length // grad.numel())
    blocks = torch.split(grad, size, dim=-2)
    squared = map(torch.square, blocks)  # one at a time
    means, sums = zip(*((block.mean(dim=-1), block.sum(dim=-2)) for block in squared), strict=True)
    row_moment.lerp_(torch.cat(means, dim=-1).add_(ADAFACTOR_EPS), lerp_weight)
    column_moment.lerp_(torch.stack(sums).sum(dim=0).div_(length).add_(ADAFACTOR_EPS), lerp_weight)
    row_factor, column_factor = (row_moment / row_moment.mean(dim=-1, keepdim=True)).rsqrt_(), column_moment.rsqrt()
    squares = torch.cat([block.square() @ column_factor.square().unsqueeze(-1) for block in blocks], dim=-2)
    mean_square = (squares * row_factor.square().unsqueeze(-1)).mean() / grad.shape[-1]
    scaled = torch.split((row_factor * _clip_lr(lr, mean_square)).unsqueeze(-1), size, dim=-2)
    for part, block, factor in zip(torch.split(param, size, dim=-2), blocks, scaled, strict=True):
        part.addcmul_(block * column_factor.unsqueeze(-2), factor, value=-1)


def _clip_lr(lr: float, mean_square: Tensor) -> Tensor:
    """The rate for an update of this mean square, which is to be at most `ADAFACTOR_CLIP`'s."""
    return lr / (mean_square.sqrt() / ADAFACTOR_CLIP).clamp_(min=1.0)


def build_optimizer(config: TrialConfig, model: nn.Module, compiled: bool = False) -> torch.optim.Optimizer:
    """The optimizer of a trial. Only matrices decay: a decayed bias or norm loses what it is for."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return Adafactor(groups, lr=config.learning_rate, compiled=compiled)


def learning_rate_at(config: TrialConfig, step: int, total_steps: int) -> float:
    """The rate of one step, counted from 0: up in a line during the warm-up, then as the schedule says.

    The first step already moves (transformers' starts at zero), the last one still does.
    """
    warmup_steps = int(config.warmup_ratio * total_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    left = (total_steps - step) / (total_steps - warmup_steps)  # from 1 down to just above 0
    if config.lr_schedule == "cosine":
        return config.learning_rate * 0.5 * (1 - math.cos(math.pi * left))
    return config.learning_rate * left
