"""The training loop and everything that computes: models, loss, optimizers, checkpoints, evaluation."""
