"""Importance of each field in a search: its share of the variance of the losses, by Optuna's PED-ANOVA."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raylm.report.figures.panels import BarChart
from raylm.report.labels import find_varying_fields, format_field_name, format_field_value
from raylm.results.rows import DONE, Row, SweepRows

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


MIN_ROWS = 8
"""Minimum number of done rows of a dataset; shares of fewer are due to chance."""


def compute_importances(results: SweepRows) -> list[tuple[str, BarChart]]:
    """Return each dataset with the shares of the fields that vary in its done rows, in percent, largest first."""
    charts = []
    for dataset in dict.fromkeys(row.config.dataset for row in results.rows):
        done = [row for row in results.rows if row.config.dataset == dataset and row.status == DONE]
        losses = {row.config.id: loss for row in done if (loss := results.ranked_loss(row)) is not None}
        rows = [row for row in done if row.config.id in losses]
        names = find_varying_fields(rows, "dataset")
        if len(rows) < MIN_ROWS or len(names) < 2:
            continue
        shares = _field_importances(rows, names, losses)
        if math.isfinite(sum(shares.values())) and any(shares.values()):
            ordered = sorted(shares, key=lambda name: -shares[name])
            chart = BarChart("", tuple(map(format_field_name, ordered)), tuple(100 * shares[name] for name in ordered))
            charts.append((format_field_value(dataset), chart))
    return charts


def _field_importances(rows: Sequence[Row], names: Sequence[str], losses: Mapping[str, float]) -> dict[str, float]:
    """Return shares that sum to 1 (Watanabe et al. 2023, arXiv:2304.10255).

    Args:
        losses: losses by trial id.
    """
    import optuna

    with warnings.catch_warnings(), _without_messages():
        warnings.simplefilter("ignore")  # the evaluator is experimental
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
        distributions = {name: _infer_distribution([getattr(row.config, name) for row in rows]) for name in names}
        for row in rows:
            params = {name: getattr(row.config, name) for name in names}
            trial = optuna.trial.create_trial(params=params, distributions=distributions, value=losses[row.config.id])
            study.add_trial(trial)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


@contextlib.contextmanager
def _without_messages() -> Iterator[None]:
    """Hide Optuna's message on each new study, and restore the user's verbosity afterwards."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _infer_distribution(values: Sequence[Any]) -> BaseDistribution:
    """Return a distribution that covers the values: a range for floats, else a categorical one."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(isinstance(value, float) for value in values):
        low, high = min(values), max(values)
        return FloatDistribution(low, high, log=low > 0 and high / low >= 10)
    return CategoricalDistribution(tuple(dict.fromkeys(values)))
