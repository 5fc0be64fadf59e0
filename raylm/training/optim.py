"""Adafactor with an absolute step, AdamW, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn

from raylm.config.trial import TrialConfig

LerpWeight = float | Tensor
"""Weight of the new value in a running mean."""

ADAFACTOR_DECAY = 0.8
"""Exponent d of the second moment's decay: the old value has the weight 1 - step^-d."""
ADAFACTOR_EPS = 1e-30
"""Added to squared gradients, to avoid a division by zero."""
ADAFACTOR_CLIP = 1.0
"""Maximum root mean square of an update, in units of the learning rate."""

CACHE_BLOCK_ELEMENTS = 2**19
"""Elements of a block of a matrix of which several fit into a processor's cache."""


class Adafactor(torch.optim.Optimizer):
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) with an absolute step size: the learning rate.

    Without parameter scaling, relative step and momentum, as transformers'
    `Adafactor(scale_parameter=False, relative_step=False)`. `torch.optim.Adafactor` always scales the step by the
    root mean square of the parameter, so that the same learning rate means something else there.

    The second moment of a matrix is stored as the means of its rows and columns, in float32. No operation synchronizes
    with the device.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0, compiled: bool = False) -> None:
        """Create the optimizer, with parameters or groups of them as in `torch.optim`.

        Args:
            params: parameters, or parameter groups with their own `lr` and `weight_decay`.
            lr: root mean square of a step, at most.
            weight_decay: decoupled decay per unit of learning rate.
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
        """Update all parameters that have a gradient; return the loss of the closure, if there is one."""
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
        weight = float(state["step"]) ** -ADAFACTOR_DECAY
        # the compiler would specialize on a Python number, and on the shape of a parameter
        lerp_weight: LerpWeight = grad.new_full((), weight) if self.compiled else weight
        value = parameter.detach()
        if grad.dim() < 2:
            self._update_vector(value, grad, state["second_moment"], lr, lerp_weight)
        else:
            self._update_matrix(value, grad, state["row"], state["column"], lr, lerp_weight)


def _update_vector(param: Tensor, grad: Tensor, second_moment: Tensor, lr: float, lerp_weight: LerpWeight) -> None:
    """Update the running second moment, then subtract the gradient divided by its square root."""
    second_moment.lerp_(grad.square().add_(ADAFACTOR_EPS), lerp_weight)
    update = second_moment.rsqrt().mul_(grad)
    param.sub_(update.mul_(_clip_lr(lr, update.square().mean())))


def _update_matrix(
    param: Tensor, grad: Tensor, row_moment: Tensor, column_moment: Tensor, lr: float, lerp_weight: LerpWeight
) -> None:
    """Update a matrix, with a second moment (..., R, C) factored into its row (..., R) and column means (..., C).

    Makes three passes over the gradient (for the moments, the size of the update, and the update), in blocks of rows
    that fit into a processor's cache, so that no tensor of the size of the parameter is allocated.
    """
    num_rows = grad.shape[-2]
    in_one_block = torch.compiler.is_compiling() or not grad.is_cpu
    size = num_rows if in_one_block else max(1, CACHE_BLOCK_ELEMENTS * num_rows // grad.numel())
    blocks = torch.split(grad, size, dim=-2)
    squared = map(torch.square, blocks)  # lazily, one block at a time
    means, sums = zip(*((block.mean(dim=-1), block.sum(dim=-2)) for block in squared), strict=True)
    row_moment.lerp_(torch.cat(means, dim=-1).add_(ADAFACTOR_EPS), lerp_weight)
    column_moment.lerp_(torch.stack(sums).sum(dim=0).div_(num_rows).add_(ADAFACTOR_EPS), lerp_weight)
    row_factor, column_factor = (row_moment / row_moment.mean(dim=-1, keepdim=True)).rsqrt_(), column_moment.rsqrt()
    squares = torch.cat([block.square() @ column_factor.square().unsqueeze(-1) for block in blocks], dim=-2)
    mean_square = (squares * row_factor.square().unsqueeze(-1)).mean() / grad.shape[-1]
    scaled = torch.split((row_factor * _clip_lr(lr, mean_square)).unsqueeze(-1), size, dim=-2)
    for param_block, block, factor in zip(torch.split(param, size, dim=-2), blocks, scaled, strict=True):
        param_block.addcmul_(block * column_factor.unsqueeze(-2), factor, value=-1)


def _clip_lr(lr: float, mean_square: Tensor) -> Tensor:
    """Return the learning rate, reduced so that an update of this mean square is clipped to `ADAFACTOR_CLIP`."""
    return lr / (mean_square.sqrt() / ADAFACTOR_CLIP).clamp_(min=1.0)


def build_optimizer(config: TrialConfig, model: nn.Module, compiled: bool = False) -> torch.optim.Optimizer:
    """Return the optimizer of a trial. Weight decay applies to matrices only, not to biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return Adafactor(groups, lr=config.learning_rate, compiled=compiled)


def learning_rate_at(config: TrialConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step, counted from 0: a linear warm-up, then the schedule of the config.

    Neither the first step (zero in transformers) nor the last one has a rate of zero.
    """
    warmup_steps = int(config.warmup_ratio * total_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    remaining = (total_steps - step) / (total_steps - warmup_steps)  # from 1 down to just above 0
    if config.lr_schedule == "cosine":
        return config.learning_rate * 0.5 * (1 - math.cos(math.pi * remaining))
    return config.learning_rate * remaining
