"""Data of the figures: points and labels, derived from rows. `raylm.report.plots` draws them."""
