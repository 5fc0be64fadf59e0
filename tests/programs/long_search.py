"""A search with early stopping on the text in $RAYLM_TESTS_LONG_TEXT."""

from __future__ import annotations

import os

from ray import tune

from raylm import Resources, Sweep

sweep = Sweep(
    name="chaos",
    search="optuna",
    num_samples=8,
    scheduler="asha",
    space={
        "dataset": os.environ["RAYLM_TESTS_LONG_TEXT"],
        "model": "gpt2-nano",
        "context_length": 16,
        "batch_size": tune.choice([2, 4]),
        "dropout": 0.1,
        "learning_rate": tune.loguniform(1e-5, 1e-2),
        "max_train_tokens": 3_000,
        "evals_per_epoch": 9,
    },
    resources=Resources(cpus=1, gpus=0),
)
