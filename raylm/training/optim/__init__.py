"""Optimizers of trials, and their learning rates."""
