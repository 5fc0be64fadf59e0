"""Lines of a table: rows in the reference's order, those that differ in their seed together. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raylm.config.catalog import MODELS
from raylm.config.trial import TrialConfig
from raylm.results.progress import EvalMetrics
from raylm.results.rows import DONE, Row, SweepRows

MISSING = "–"
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t with 1 to 10 degrees of freedom."""


@dataclass(frozen=True)
class SeedGroup:
    """Rows that differ in their seed only: one line of the table."""

    rows: list[Row]

    @property
    def config(self) -> TrialConfig:
        """Config of the first row."""
        return self.rows[0].config

    @property
    def metrics(self) -> list[EvalMetrics]:
        """Losses to average: of the done rows, or of a single row with any status."""
        rows = self.rows if len(self.rows) == 1 else [row for row in self.rows if row.status == DONE]
        return [row.metrics for row in rows if row.metrics]

    @property
    def unfinished_statuses(self) -> list[str]:
        """Statuses of the rows that are not done, once each, with their number if there are several rows."""
        statuses = [row.status for row in self.rows if row.status != DONE]
        counts = {status: statuses.count(status) for status in statuses}
        return [f"{count} {status}" if len(self.rows) > 1 else status for status, count in counts.items()]

    @property
    def has_rising_loss(self) -> bool:
        """True if the training loss of any row rises at the end."""
        checkpoints = (row.latest_checkpoint for row in self.rows)
        return any(checkpoint is not None and checkpoint.progress.is_loss_rising for checkpoint in checkpoints)


def sort_rows(results: SweepRows) -> list[Row]:
    """Return the rows ordered by dataset, model size, context length and batch size, ties as in the sweep.

    Rows that are ordered already stay so.
    """
    if results.is_ordered:
        return list(results.rows)
    datasets = list(dict.fromkeys(row.config.dataset for row in results.rows))
    models = [*MODELS, *dict.fromkeys(row.config.model for row in results.rows if row.config.model not in MODELS)]

    def sort_key(row: Row) -> tuple[int, int, int, int]:
        config = row.config
        return datasets.index(config.dataset), models.index(config.model), config.context_length, config.batch_size

    return sorted(results.rows, key=sort_key)


def group_by_seed(results: SweepRows) -> list[SeedGroup]:
    """Return the rows in the order of `sort_rows`, those that differ in their seed only as one group."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sort_rows(results):
        groups.setdefault(row.config.key_without("seed"), []).append(row)
    return [SeedGroup(rows) for rows in groups.values()]


def format_mean_interval(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean and, for two or more values, half the width of its 95 % confidence interval (Student's t)."""
    if not values:
        return MISSING
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    half = student_t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.{digits}f} ± {half:.{digits}f}"


def student_t_quantile(degrees_of_freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t; above ten degrees by Abramowitz and Stegun 26.7.5."""
    if degrees_of_freedom <= len(T_QUANTILES):
        return T_QUANTILES[degrees_of_freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * degrees_of_freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees_of_freedom**2)
