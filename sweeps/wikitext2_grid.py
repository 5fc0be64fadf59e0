"""WikiText-2 rows of the reference table, in its order: four models by three context lengths, and a larger batch."""

from ray import tune

from raylm import Sweep

sweep = Sweep(
    name="wikitext2-grid",
    space=[
        {"dataset": "wikitext2", "model": "gpt2", "context_length": 256, "batch_size": tune.grid_search([8, 16])},
        {
            "dataset": "wikitext2",
            "model": tune.grid_search(["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]),
            "context_length": tune.grid_search([256, 512, 1024]),
            "batch_size": 8,
        },
    ],
)
