"""What a finished sweep suggests to try next, from its own rows alone. No torch, no Ray.

The rules are those of Google's Deep Learning Tuning Playbook: an optimum at the edge of what was tried is not known to
be one; a difference within what seeds make is none; instability has few usual reasons.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from raylm.report.table import SeedGroup, group_by_seed, student_t_quantile
from raylm.results.rows import DIVERGED, DONE, Results
from raylm.units import pluralize

TUNED_FIELDS = ("learning_rate", "batch_size", "epochs", "warmup_ratio", "weight_decay", "dropout")
"""Fields whose best value is looked for. Model and context length are what the table is about."""
UNIT_INTERVAL_FIELDS = ("warmup_ratio", "dropout")
"""Of these, the ones from 0 to 1."""
MIN_VALUES = 3
"""Different values of a field from which on an edge tells something, all other fields being equal."""
MIN_VALUES_UNPAIRED = 8
"""Values of a field from which on it does so where other fields differ too, as in a search."""
MIN_RELATIVE_GAP = 0.01
"""Relative difference of two losses below which one seed each is not taken for proof."""


def build_advice(results: Results) -> list[str]:
    """What there is to say of a sweep whose rows have all ended, the most telling first; nothing of any other."""
    if not results.rows or any(not row.is_finished for row in results.rows):
        return []
    by_dataset: dict[str, list[SeedGroup]] = {}
    for line in group_by_seed(results):
        by_dataset.setdefault(line.rows[0].config.dataset, []).append(line)
    told = [(dataset, text) for dataset, some in by_dataset.items() for text in _advise_dataset(some)]
    return [text if len(by_dataset) == 1 else f"{dataset}: {text}" for dataset, text in told]


def _advise_dataset(groups: Sequence[SeedGroup]) -> list[str]:
    ranked = sorted((line for line in groups if _has_finished(line)), key=_mean_loss)
    diverged = [line for line in groups if any(row.status == DIVERGED for row in line.rows)]
    told = _advise_divergence(diverged, ranked)
    if len(ranked) > 1:
        told += [*_advise_edges(ranked[0], groups), *_advise_noise(ranked), *_advise_epochs(ranked[0])]
    return told


def _has_finished(group: SeedGroup) -> bool:
    return any(row.status == DONE for row in group.rows)


def _mean_loss(group: SeedGroup) -> float:
    """Mean adj val loss of its seeds."""
    return statistics.fmean(measured.adj_val_loss for measured in group.metrics)


def _field_value(group: SeedGroup, field: str) -> Any:
    return getattr(group.rows[0].config, field)


def _run_name(group: SeedGroup) -> str:
    return group.rows[0].config.run_name


# ---- the edge of what was tried -----------------------------------------------------------------------------------


def _advise_edges(best: SeedGroup, groups: Sequence[SeedGroup]) -> list[str]:
    """Fields whose best value is the largest or the smallest of those tried, with the next one to try."""
    told = []
    for field in TUNED_FIELDS:
        own = _field_value(best, field)
        tried = _tried_values(best, field, groups)
        if own not in tried or own not in (tried[0], tried[-1]):
            continue
        largest = own == tried[-1]
        following = _next_value(field, own, tried[-2] if largest else tried[1])
        if following is not None:
            told.append(
                f"the best {field}, {own:g}, is the {'largest' if largest else 'smallest'} of {len(tried)} tried "
                f"({tried[0]:g} to {tried[-1]:g}), so the optimum may lie beyond: try {following:g}"
            )
    return told


def _tried_values(best: SeedGroup, field: str, groups: Sequence[SeedGroup]) -> list[float]:
    """The values of a field that were tried beside the best row's, in order; none where they are too few to tell."""
    beside = {
        _field_value(line, field) for line in groups if _other_fields(line, field) == _other_fields(best, field)
    } - {None}
    if len(beside) >= MIN_VALUES:
        return sorted(beside)
    everywhere = {_field_value(line, field) for line in groups} - {None}
    return sorted(everywhere) if len(everywhere) >= MIN_VALUES_UNPAIRED else []


def _other_fields(group: SeedGroup, field: str) -> str:
    """All fields but this one and the seed, as text."""
    return repr({**group.rows[0].config.as_dict(), field: None, "seed": None})


def _next_value(field: str, edge: float, neighbor: float) -> float | None:
    """The next value, as far from the edge as that is from its neighbour; None where there is none."""
    if field in UNIT_INTERVAL_FIELDS or neighbor == 0 or edge == 0:
        following = 2 * edge - neighbor
        return float(f"{following:.2g}") if 0 <= following < 1 and edge > 0 else None
    following = float(f"{edge * edge / neighbor:.2g}")
    if field in ("batch_size", "epochs"):
        following = round(following)
    return following if following > 0 and following != edge else None


# ---- noise --------------------------------------------------------------------------------------------------------


def _advise_noise(ranked: Sequence[SeedGroup]) -> list[str]:
    """Which rows are as good as the best, as far as seeds can tell."""
    best, second = ranked[:2]
    samples = [[measured.adj_val_loss for measured in line.metrics] for line in ranked]
    degrees = sum(len(one) - 1 for one in samples)
    if degrees == 0:
        gap = _mean_loss(second) - _mean_loss(best)
        if gap >= MIN_RELATIVE_GAP * _mean_loss(best):
            return []
        return [
            f"the best two rows are {gap:.3f} apart in adj val loss, by one seed each, which may be noise: "
            f"seeds=(0, 1, 2) in the sweep tells ({_run_name(best)}, {_run_name(second)})"
        ]
    spread = math.sqrt(sum(statistics.variance(one) * (len(one) - 1) for one in samples if len(one) > 1) / degrees)
    as_good = []
    for line, values in zip(ranked[1:], samples[1:], strict=True):
        half = student_t_quantile(degrees) * spread * math.sqrt(1 / len(samples[0]) + 1 / len(values))
        as_good += [line] if _mean_loss(line) - _mean_loss(best) < half else []
    if not as_good:
        return []
    names = ", ".join(map(_run_name, as_good[:3])) + (", ..." if len(as_good) > 3 else "")
    return [
        f"{pluralize(len(as_good), 'row')} as good as the best, as far as seeds can tell (their standard deviation in "
        f"adj val loss is {spread:.3f}), so that cost may decide: {names}"
    ]


# ---- length and stability -----------------------------------------------------------------------------------------


def _advise_epochs(best: SeedGroup) -> list[str]:
    """Whether the best row was trained too long, or not long enough."""
    epochs, reached = _field_value(best, "epochs"), {measured.epoch for measured in best.metrics}
    if epochs == 1:
        return []
    if min(reached) == epochs:
        return [f"the best row's val loss still falls in the last of its {epochs} epochs: more may lower it further"]
    if max(reached) < epochs:
        return [
            f"the best row's val loss is lowest in epoch {max(reached)} of {epochs}: it overfits after that, "
            "which fewer epochs, dropout or weight_decay may mend"
        ]
    return []


def _advise_divergence(diverged: Sequence[SeedGroup], ranked: Sequence[SeedGroup]) -> list[str]:
    """The likely reason of losses that are not finite."""
    if not diverged:
        return []
    which = pluralize(len(diverged), "row") + " diverged"
    lowest = min(_field_value(line, "learning_rate") for line in diverged)
    highest = max((_field_value(line, "learning_rate") for line in ranked), default=0.0)
    if ranked and lowest > highest:
        return [
            f"{which}, all at a learning_rate from {lowest:g} up, and none up to {highest:g}: "
            f"the rate is the likely reason; stay below {lowest:g}"
        ]
    if all(_field_value(line, "max_grad_norm") == 0 for line in diverged):
        return [f"{which}, all without clipping: try max_grad_norm=1"]
    if all(_field_value(line, "warmup_ratio") == 0 for line in diverged):
        return [f"{which}, all without a warm-up: try warmup_ratio=0.1"]
    return [f"{which}: a lower learning_rate than {lowest:g} is the first thing to try ({_run_name(diverged[0])})"]
