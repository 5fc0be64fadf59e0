"""Four trials of some seconds on the text in $RAYLM_TESTS_LONG_TEXT; the second diverges at once."""

from __future__ import annotations

import os

from ray import tune

from raylm import Resources, Sweep

sweep = Sweep(
    name="chaos",
    space={
        "dataset": os.environ["RAYLM_TESTS_LONG_TEXT"],
        "model": "gpt2-nano",
        "context_length": 16,
        "batch_size": 1,
        "dropout": 0.1,
        "learning_rate": tune.grid_search([1e-3, 1e30, 2e-3, 3e-3]),
        "max_train_tokens": 10_000,
    },
    resources=Resources(cpus=1, gpus=0),
)
