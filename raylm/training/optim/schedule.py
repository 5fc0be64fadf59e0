"""Learning rate of each step of a trial."""

from __future__ import annotations

import math

from raylm.config.trial import TrialConfig


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
