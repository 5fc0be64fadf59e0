"""WikiText-103, which the reference table does not have: the grid of its WikiText-2 rows on fifty times the text."""

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
