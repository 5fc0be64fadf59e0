"""How much of the spread of a search's losses each field accounts for, by Optuna's PED-ANOVA."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from raylm.report.figures import BarChart, find_varying_fields, format_field_name, format_field_value
from raylm.results.rows import DONE, Results, Row

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


MIN_ROWS = 8
"""Done rows of a dataset below which a share would be chance."""


def compute_importances(results: Results) -> list[tuple[str, BarChart]]:
    """Datasets, and for each the share of every field that differs in its done rows, the largest first."""
    datasets = dict.fromkeys(row.config.dataset for row in results.rows)
    found = []
    for dataset in datasets:
        rows = [row for row in results.rows if row.config.dataset == dataset and row.status == DONE and row.metrics]
        names = find_varying_fields(rows, "dataset")
        if len(rows) >= MIN_ROWS and len(names) > 1:
            shares = _field_importances(rows, names)
            if math.isfinite(sum(shares.values())) and any(shares.values()):
                ordered = sorted(shares, key=lambda name: -shares[name])
                bars = BarChart(
                    "", tuple(map(format_field_name, ordered)), tuple(100 * shares[name] for name in ordered), 0
                )
                found.append((format_field_value(dataset), bars))
    return found


def _field_importances(rows: Sequence[Row], names: Sequence[str]) -> dict[str, float]:
    """Shares that add up to 1 (Watanabe et al. 2023, arXiv:2304.10255)."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the evaluator is experimental
        study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
        distributions = {name: _infer_distribution([getattr(row.config, name) for row in rows]) for name in names}
        for row in rows:
            params = {name: getattr(row.config, name) for name in names}
            loss = row.metrics.adj_val_loss if row.metrics else math.nan
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=loss))
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _infer_distribution(values: Sequence[Any]) -> BaseDistribution:
    """What these values may have been drawn from: a range of numbers, else a choice."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(isinstance(value, float) for value in values):
        low, high = min(values), max(values)
        return FloatDistribution(low, high, log=low > 0 and high / low >= 10)
    return CategoricalDistribution(tuple(dict.fromkeys(values)))
