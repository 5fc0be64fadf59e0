"""Training loop, models, loss, optimizers, checkpoints and evaluation: everything that uses torch."""
