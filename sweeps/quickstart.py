"""First sweep: a small GPT-2 on Python's own documentation. No download, no GPU, about two minutes on two cores."""

from ray import tune

from raylm import Sweep

sweep = Sweep(
    name="quickstart",
    space=[
        {
            "dataset": "pydocs",
            "model": "gpt2-nano",
            "context_length": tune.grid_search([64, 128]),
            "batch_size": tune.grid_search([4, 8]),
            "learning_rate": 1e-3,
            "epochs": 2,
        },
        {  # a list of spaces is their union
            "dataset": "pydocs",
            "model": "gpt2-nano",
            "context_length": 64,
            "batch_size": 8,
            "learning_rate": tune.grid_search([3e-4, 3e-3]),
            "epochs": 2,
        },
    ],
)
