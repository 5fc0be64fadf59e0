"""Adafactor with an absolute step, AdamW, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn

from raylm.config import TrialConfig

ADAFACTOR_DECAY = 0.8
"""The share of the old second moment is 1 - step^-0.8."""
ADAFACTOR_EPS = 1e-30
"""Added to squared gradients, so that a gradient of zero divides nothing by zero."""
ADAFACTOR_CLIP = 1.0
"""Largest root mean square of a step, in units of the learning rate."""


class Adafactor(torch.optim.Optimizer):
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) whose step has the size of the learning rate.

    No parameter scaling, no relative step, no momentum: what transformers calls
    `Adafactor(scale_parameter=False, relative_step=False)`. `torch.optim.Adafactor` always scales the step by the
    root mean square of the parameter and is another optimizer at the same rate.

    The second moment of a matrix is kept as the means of its rows and columns, in float32. Nothing waits for the
    device.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

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
                    state = self.state[parameter]
                    update = self._update(parameter.grad, state)
                    if group["weight_decay"]:
                        parameter.mul_(1 - group["weight_decay"] * group["lr"])
                    parameter.sub_(update.mul_(group["lr"]))
        return loss

    @staticmethod
    def _update(grad: Tensor, state: dict[str, Any]) -> Tensor:
        """The gradient over the root of its running second moment, its root mean square clipped at 1."""
        state["step"] = state.get("step", 0) + 1
        fresh = float(state["step"]) ** -ADAFACTOR_DECAY
        squared = grad.square().add_(ADAFACTOR_EPS)
        if grad.dim() < 2:
            update = _average(state, "second_moment", squared, fresh).rsqrt().mul_(grad)
        else:
            row = _average(state, "row", squared.mean(dim=-1), fresh)
            column = _average(state, "column", squared.mean(dim=-2), fresh)
            row_factor = (row / row.mean(dim=-1, keepdim=True)).rsqrt_().unsqueeze(-1)
            update = torch.mul(grad, row_factor, out=squared).mul_(column.rsqrt().unsqueeze(-2))
        rms = torch.linalg.vector_norm(update) / update.numel() ** 0.5
        return update.div_((rms / ADAFACTOR_CLIP).clamp_(min=1.0))


def _average(state: dict[str, Any], name: str, value: Tensor, fresh: float) -> Tensor:
    """The running mean under a name, with a share of `fresh` of this value."""
    if name not in state:
        state[name] = torch.zeros_like(value)
    mean: Tensor = state[name]
    return mean.lerp_(value, fresh)


def make(config: TrialConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a trial. Only matrices decay: a decayed bias or norm loses what it is for."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return Adafactor(groups, lr=config.learning_rate)


def learning_rate(config: TrialConfig, step: int, total_steps: int) -> float:
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
