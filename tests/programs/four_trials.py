"""A sweep of four short trials on the text in $RAYLM_TESTS_TEXT."""

from __future__ import annotations

import os

from ray import tune

from raylm import Resources, Sweep

sweep = Sweep(
    name="small",
    space={
        "dataset": os.environ["RAYLM_TESTS_TEXT"],
        "model": "gpt2-nano",
        "context_length": tune.grid_search([16, 32]),
        "batch_size": tune.grid_search([2, 4]),
        "learning_rate": 1e-3,
        "epochs": 3,
        "dropout": 0.1,
    },
    resources=Resources(cpus=1, gpus=0),
)
