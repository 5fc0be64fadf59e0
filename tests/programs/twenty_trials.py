"""Twenty trials with many evaluations on the text in $RAYLM_TESTS_LONG_TEXT."""

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
        "batch_size": tune.grid_search([2, 4]),
        "learning_rate": tune.grid_search([n * 1e-3 for n in range(1, 11)]),
        "dropout": 0.1,
        "max_train_tokens": 6_000,
        "evals_per_epoch": 20,
    },
    resources=Resources(cpus=1, gpus=0),
)
