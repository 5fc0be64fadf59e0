"""Three trials on the text in $RAYLM_TESTS_LONG_TEXT, and one of the large model in $RAYLM_TESTS_MODEL."""

from __future__ import annotations

import os

from raylm import Resources, Sweep

common = {
    "dataset": os.environ["RAYLM_TESTS_LONG_TEXT"],
    "context_length": 16,
    "batch_size": 1,
    "dropout": 0.1,
    "max_train_tokens": 10_000,
}
small = [{**common, "model": "gpt2-nano", "learning_rate": rate} for rate in (1e-3, 2e-3, 3e-3)]
large = {**common, "model": os.environ["RAYLM_TESTS_MODEL"], "pretrained": False}
sweep = Sweep(name="chaos", space=[small[0], large, *small[1:]], resources=Resources(cpus=1, gpus=0))
