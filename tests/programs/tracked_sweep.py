"""Sweep of two trials of two epochs on the dataset `$TRACKED_DATASET`."""

from __future__ import annotations

import os

from ray import tune

from raylm import Resources, Sweep

sweep = Sweep(
    name="small",
    space={
        "dataset": os.environ["TRACKED_DATASET"],
        "model": "gpt2-nano",
        "context_length": 16,
        "batch_size": tune.grid_search([2, 4]),
        "epochs": 2,
    },
    resources=Resources(cpus=1),
)
