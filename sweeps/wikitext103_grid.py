"""WikiText-103 with the grid of the reference table's WikiText-2 rows: fifty times the text, no reference losses."""

from ray import tune

from raylm import Sweep

sweep = Sweep(
    name="wikitext103-grid",
    space={
        "dataset": "wikitext103",
        "model": tune.grid_search(["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"]),
        "context_length": tune.grid_search([256, 512, 1024]),
        "batch_size": 8,
    },
)
