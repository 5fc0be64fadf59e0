"""Sampling of trials: points of a search space, and the record of those that were suggested."""
