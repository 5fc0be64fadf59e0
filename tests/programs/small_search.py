"""A small search. Tests of sweep files load mutations of it."""

from ray import tune

from raylm import Sweep

space = {
    "learning_rate": tune.loguniform(1e-5, 1e-3),
    "batch_size": tune.choice([4, 8]),
    "dropout": tune.quniform(0.1, 0.5, 0.1),
    "evals_per_epoch": 9,
}
points = [{"batch_size": 4, "learning_rate": 1e-4}]
sweep = Sweep(
    name="small-search",
    space=space,
    search="optuna",
    num_samples=20,
    points_to_evaluate=points,
    scheduler="asha",
)
