"""Sweeps, trials, search spaces and sweep files as a user writes them, and their validation."""
