"""Optimizer of a trial, with its groups of parameters and the clipping of their gradients."""

from __future__ import annotations

import torch
from torch import nn

from raylm.config.trial import TrialConfig
from raylm.training.optim.adafactor import Adafactor, can_fuse


def build_optimizer(config: TrialConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of a trial, whose step clips the gradients by the norm of all of them, then updates.

    Weight decay applies to matrices only, not to biases and norms.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adafactor" and can_fuse(parameters):
        return Adafactor(groups, lr=config.learning_rate, fused=True, max_grad_norm=config.max_grad_norm)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "adamw":
        on_gpu = any(not p.is_cpu for p in parameters)  # by default torch copies all parameters there: 6 GB for gpt2-xl
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=on_gpu or None)
    else:
        optimizer = Adafactor(groups, lr=config.learning_rate)
    if config.max_grad_norm > 0:
        optimizer.register_step_pre_hook(lambda *_: _clip_gradients(parameters, config.max_grad_norm))
    return optimizer


def _clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
