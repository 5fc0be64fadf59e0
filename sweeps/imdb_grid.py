"""IMDB rows of the reference table: one epoch of Adafactor at 5e-5 on all labelled reviews."""

from ray import tune

from raylm import Sweep

sweep = Sweep(
    name="imdb-grid",
    space=[
        {"dataset": "imdb", "model": "gpt2", "context_length": 256, "batch_size": tune.grid_search([8, 16])},
        {
            "dataset": "imdb",
            "model": tune.grid_search(["gpt2", "gpt2-medium"]),
            "context_length": tune.grid_search([256, 512, 1024]),
            "batch_size": 64,
        },
    ],
)
