"""Three short trials on the text in $RAYLM_TESTS_TEXT."""

from __future__ import annotations

import os

from ray import tune

from raylm import Resources, Sweep

sweep = Sweep(
    name="small",
    space={
        "dataset": os.environ["RAYLM_TESTS_TEXT"],
        "model": "gpt2-nano",
        "context_length": 16,
        "batch_size": 2,
        "dropout": 0.1,
        "epochs": 3,
        "learning_rate": tune.grid_search([1e-3, 2e-3, 3e-3]),
        "max_train_tokens": 2_000,
    },
    resources=Resources(cpus=1, gpus=0),
)
