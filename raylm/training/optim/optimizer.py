"""Optimizer of a trial, with its groups of parameters."""

from __future__ import annotations

import torch
from torch import nn

from raylm.config.trial import TrialConfig
from raylm.training.optim.adafactor import Adafactor


def build_optimizer(config: TrialConfig, model: nn.Module, compiled: bool = False) -> torch.optim.Optimizer:
    """Return the optimizer of a trial. Weight decay applies to matrices only, not to biases and norms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        on_gpu = any(not p.is_cpu for p in parameters)  # by default torch copies all parameters there: 6 GB for gpt2-xl
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=on_gpu or None)
    return Adafactor(groups, lr=config.learning_rate, compiled=compiled)
