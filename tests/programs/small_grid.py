"""A small grid. Tests of sweep files load mutations of it."""

from ray import tune

from raylm import Resources, Sweep

EPOCHS = 3
sweep = Sweep(
    name="small-grid",
    space=[
        {
            "dataset": "pydocs",
            "model": tune.grid_search(["gpt2-nano", "gpt2"]),
            "context_length": tune.grid_search([16, 32]),
            "learning_rate": 1e-3,
            "epochs": EPOCHS,
        },
        {"seed": 7, "pretrained": False},
    ],
    resources=Resources(gpus=0.5, cpus=2),
    max_failures=1,
)
