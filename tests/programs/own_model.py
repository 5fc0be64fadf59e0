"""Two short trials of the model in $RAYLM_TESTS_MODEL on the text in $RAYLM_TESTS_TEXT."""

from __future__ import annotations

import os

from ray import tune

from raylm import Resources, Sweep

sweep = Sweep(
    name="own",
    space={
        "dataset": os.environ["RAYLM_TESTS_TEXT"],
        "model": os.environ["RAYLM_TESTS_MODEL"],
        "context_length": 32,
        "max_train_tokens": 600,
        "dropout": 0.0,
        "learning_rate": tune.grid_search([1e-3, 2e-3]),
    },
    resources=Resources(cpus=1, gpus=0),
)
