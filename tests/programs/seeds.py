"""Short trials on the text in $RAYLM_TESTS_TEXT, one for each seed in $RAYLM_TESTS_SEEDS."""

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
        "batch_size": 4,
        "max_train_tokens": 300,
        "seed": tune.grid_search([int(seed) for seed in os.environ["RAYLM_TESTS_SEEDS"].split(",")]),
    },
    resources=Resources(cpus=1),
)
