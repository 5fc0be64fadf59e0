"""Search over model, context length, batch size and learning rate on IMDB, with early stopping of bad trials."""

from ray import tune

from raylm import Sweep

sweep = Sweep(
    name="imdb-optuna",
    space={
        "dataset": "imdb",
        "model": tune.choice(["gpt2", "gpt2-medium"]),
        "context_length": tune.choice([256, 512, 1024]),
        "batch_size": tune.choice([8, 16, 64]),
        "learning_rate": tune.loguniform(1e-5, 1e-3),
        "evals_per_epoch": 9,
    },
    search="optuna",
    num_samples=30,
    scheduler="asha",
    points_to_evaluate=[  # the first and the best row of the reference table
        {"model": "gpt2", "context_length": 256, "batch_size": 8, "learning_rate": 5e-5},
        {"model": "gpt2-medium", "context_length": 512, "batch_size": 64, "learning_rate": 5e-5},
    ],
)
