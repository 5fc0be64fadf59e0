"""Suggestions for the next sweep, derived from the rows of a finished one. No torch, no Ray.

The rules follow Google's Deep Learning Tuning Playbook: an optimum at the edge of the values tried may lie beyond it;
a difference smaller than the noise between seeds is no difference; instability has a few common causes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from raylm.report.tables.groups import SeedGroup, group_by_seed, student_t_quantile
from raylm.results.measures import Measure
from raylm.results.rows import DIVERGED, DONE, SweepRows
from raylm.units import pluralize

TUNED_FIELDS = ("learning_rate", "batch_size", "epochs", "warmup_ratio", "weight_decay", "dropout")
"""Fields with an optimum to search for. Model and context length are the subject of the table."""
UNIT_INTERVAL_FIELDS = ("warmup_ratio", "dropout")
"""Tuned fields with values from 0 to 1."""
MIN_VALUES = 3
"""Minimum number of values of a field for advice on edges, if all other fields are equal."""
MIN_VALUES_UNPAIRED = 8
"""Minimum number of values of a field for advice on edges, if other fields differ too, as in a search."""
MIN_RELATIVE_GAP = 0.01
"""Relative difference of two losses of one seed each that counts as significant."""
MAX_NAMED_RUNS = 3
"""Maximum number of run names in one piece of advice."""


def build_advice(results: SweepRows) -> list[str]:
    """Return the suggestions for a sweep, most important first; none while rows are unfinished."""
    if not results.rows or any(not row.is_finished for row in results.rows):
        return []
    by_dataset: dict[str, list[SeedGroup]] = {row.config.dataset: [] for row in results.rows}
    for group in group_by_seed(results):
        if results.measures[group.config.dataset].compares(group.config):
            by_dataset[group.config.dataset].append(group)
    advice = [
        (dataset, text)
        for dataset, groups in by_dataset.items()
        for text in _advise_dataset(groups, results.measures[dataset])
    ]
    return [text if len(by_dataset) == 1 else f"{dataset}: {text}" for dataset, text in advice]


def _advise_dataset(groups: Sequence[SeedGroup], measure: Measure) -> list[str]:
    """Return advice on the rows of a dataset whose losses compare, ranked by its measure."""
    done = [group for group in groups if any(row.status == DONE for row in group.rows)]
    ranked = sorted(done, key=lambda group: _mean_loss(group, measure))
    diverged = [group for group in groups if any(row.status == DIVERGED for row in group.rows)]
    advice = _advise_divergence(diverged, ranked)
    if len(ranked) > 1:
        advice += [*_advise_edges(ranked[0], groups), *_advise_noise(ranked, measure), *_advise_epochs(ranked[0])]
    return advice


def _losses(group: SeedGroup, measure: Measure) -> list[float]:
    """Return the losses of the seeds."""
    return [measure.compute(group.config, metrics) for metrics in group.metrics]


def _mean_loss(group: SeedGroup, measure: Measure) -> float:
    """Return the mean loss over the seeds."""
    return statistics.fmean(_losses(group, measure))


def _field_value(group: SeedGroup, field: str) -> Any:
    return getattr(group.config, field)


# ---- optimum at the edge of the values tried ----------------------------------------------------------------------


def _advise_edges(best: SeedGroup, groups: Sequence[SeedGroup]) -> list[str]:
    """Return advice on fields whose best value is the largest or smallest tried, with the next value to try."""
    advice = []
    for field in TUNED_FIELDS:
        value = _field_value(best, field)
        tried = _tried_values(best, field, groups)
        if value not in tried or value not in (tried[0], tried[-1]):
            continue
        is_largest = value == tried[-1]
        suggestion = _next_value(field, value, tried[-2] if is_largest else tried[1])
        if suggestion is not None:
            advice.append(
                f"the best {field}, {value:g}, is the {'largest' if is_largest else 'smallest'} of {len(tried)} tried "
                f"({tried[0]:g} to {tried[-1]:g}); the optimum may lie beyond: try {suggestion:g}"
            )
    return advice


def _tried_values(best: SeedGroup, field: str, groups: Sequence[SeedGroup]) -> list[float]:
    """Return the values tried of a field, ascending, with the other fields as in the best group if these are enough.

    The list is empty if there are too few values to judge an edge by.
    """
    others = best.config.key_without(field, "seed")
    alike = [group for group in groups if group.config.key_without(field, "seed") == others]
    paired = {_field_value(group, field) for group in alike} - {None}
    if len(paired) >= MIN_VALUES:
        return sorted(paired)
    unpaired = {_field_value(group, field) for group in groups} - {None}
    return sorted(unpaired) if len(unpaired) >= MIN_VALUES_UNPAIRED else []


def _next_value(field: str, edge: float, neighbor: float) -> float | None:
    """Return the value that continues the step from the neighbor to the edge, or None if it is out of range."""
    if field in UNIT_INTERVAL_FIELDS or neighbor == 0 or edge == 0:
        value = 2 * edge - neighbor
        return float(f"{value:.2g}") if 0 <= value < 1 and edge > 0 else None
    value = float(f"{edge * edge / neighbor:.2g}")
    if field in ("batch_size", "epochs"):
        value = round(value)
    return value if value > 0 and value != edge else None


# ---- noise --------------------------------------------------------------------------------------------------------


def _advise_noise(ranked: Sequence[SeedGroup], measure: Measure) -> list[str]:
    """Return advice on rows that do not differ significantly from the best one."""
    samples = [_losses(group, measure) for group in ranked]
    degrees = sum(len(values) - 1 for values in samples)
    if degrees == 0:
        return _advise_more_seeds(ranked[0], ranked[1], measure)
    variances = (statistics.variance(values) * (len(values) - 1) for values in samples if len(values) > 1)
    deviation = math.sqrt(sum(variances) / degrees)
    equivalent = []
    for group, values in zip(ranked[1:], samples[1:], strict=True):
        interval = student_t_quantile(degrees) * deviation * math.sqrt(1 / len(samples[0]) + 1 / len(values))
        gap = _mean_loss(group, measure) - _mean_loss(ranked[0], measure)
        equivalent += [group] if gap < interval else []
    if not equivalent:
        return []
    names = [group.config.run_name for group in equivalent[:MAX_NAMED_RUNS]]
    names += ["..."] if len(equivalent) > MAX_NAMED_RUNS else []
    return [
        f"not significantly worse than the best: {pluralize(len(equivalent), 'row')} (standard deviation between seeds "
        f"in {measure.name}: {measure.format(deviation)}); choose by cost: {', '.join(names)}"
    ]


def _advise_more_seeds(best: SeedGroup, second: SeedGroup, measure: Measure) -> list[str]:
    """Return advice on the two best rows if they are close and have one seed each."""
    gap = _mean_loss(second, measure) - _mean_loss(best, measure)
    if gap >= MIN_RELATIVE_GAP * _mean_loss(best, measure):
        return []
    return [
        f"the best two rows differ by {measure.format(gap)} in {measure.name} with one seed each, which may be noise: "
        f"set seeds=(0, 1, 2) in the sweep to find out ({best.config.run_name}, {second.config.run_name})"
    ]


# ---- length and stability -----------------------------------------------------------------------------------------


def _advise_epochs(best: SeedGroup) -> list[str]:
    """Return advice on a best row that was trained for too many or too few epochs."""
    epochs, best_epochs = _field_value(best, "epochs"), {metrics.epoch for metrics in best.metrics}
    if epochs == 1:
        return []
    if min(best_epochs) == epochs:
        return [f"the val loss of the best row still falls in the last of its {epochs} epochs: try more epochs"]
    if max(best_epochs) < epochs:
        return [
            f"the best row overfits after epoch {max(best_epochs)} of {epochs}, where its val loss is lowest: "
            "try fewer epochs, more dropout or more weight_decay"
        ]
    return []


def _advise_divergence(diverged: Sequence[SeedGroup], ranked: Sequence[SeedGroup]) -> list[str]:
    """Return the likely cause of losses that are not finite."""
    if not diverged:
        return []
    subject = pluralize(len(diverged), "row") + " diverged"
    lowest = min(_field_value(group, "learning_rate") for group in diverged)
    highest = max((_field_value(group, "learning_rate") for group in ranked), default=0.0)
    if ranked and lowest > highest:
        return [
            f"{subject}, all with a learning_rate of {lowest:g} or more, and none with {highest:g} or less: "
            f"the learning rate is the likely cause; stay below {lowest:g}"
        ]
    if all(_field_value(group, "max_grad_norm") == 0 for group in diverged):
        return [f"{subject}, all without gradient clipping: try max_grad_norm=1"]
    if all(_field_value(group, "warmup_ratio") == 0 for group in diverged):
        return [f"{subject}, all without warm-up: try warmup_ratio=0.1"]
    return [f"{subject}: first try a learning_rate lower than {lowest:g} ({diverged[0].config.run_name})"]
