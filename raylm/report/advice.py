"""What a finished sweep suggests to try next, from its own rows alone. No torch, no Ray.

The rules are those of Google's Deep Learning Tuning Playbook: an optimum at the edge of what was tried is not known to
be one; a difference within what seeds make is none; instability has few usual reasons.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from raylm.errors import counted
from raylm.report.table import Line, lines, student_t
from raylm.results.rows import DIVERGED, DONE, Results

TUNED = ("learning_rate", "batch_size", "epochs", "warmup_ratio", "weight_decay", "dropout")
"""Fields whose best value is looked for. Model and context length are what the table is about."""
SHARES = ("warmup_ratio", "dropout")
"""Of these, the ones from 0 to 1."""
ENOUGH_VALUES = 3
"""Different values of a field from which on an edge tells something, all other fields being equal."""
ENOUGH_TRIALS = 8
"""Values of a field from which on it does so where other fields differ too, as in a search."""
CLOSE = 0.01
"""Relative difference of two losses below which one seed each is not taken for proof."""


def advice(results: Results) -> list[str]:
    """What there is to say of a sweep whose rows have all ended, the most telling first; nothing of any other."""
    if not results.rows or any(not row.ended for row in results.rows):
        return []
    by_dataset: dict[str, list[Line]] = {}
    for line in lines(results):
        by_dataset.setdefault(line.rows[0].config.dataset, []).append(line)
    told = [(dataset, text) for dataset, some in by_dataset.items() for text in _of_dataset(some)]
    return [text if len(by_dataset) == 1 else f"{dataset}: {text}" for dataset, text in told]


def _of_dataset(some: Sequence[Line]) -> list[str]:
    ranked = sorted((line for line in some if _is_done(line)), key=_loss)
    diverged = [line for line in some if any(row.status == DIVERGED for row in line.rows)]
    told = _instability(diverged, ranked)
    if len(ranked) > 1:
        told += [*_edges(ranked[0], some), *_noise(ranked), *_length(ranked[0])]
    return told


def _is_done(line: Line) -> bool:
    return any(row.status == DONE for row in line.rows)


def _loss(line: Line) -> float:
    """Mean adj val loss of its seeds."""
    return statistics.fmean(measured.adj_val_loss for measured in line.measured)


def _value(line: Line, field: str) -> Any:
    return getattr(line.rows[0].config, field)


def _named(line: Line) -> str:
    return line.rows[0].config.run_name


# ---- the edge of what was tried -----------------------------------------------------------------------------------


def _edges(best: Line, some: Sequence[Line]) -> list[str]:
    """Fields whose best value is the largest or the smallest of those tried, with the next one to try."""
    told = []
    for field in TUNED:
        own = _value(best, field)
        tried = _tried(best, field, some)
        if own not in tried or own not in (tried[0], tried[-1]):
            continue
        largest = own == tried[-1]
        following = _beyond(field, own, tried[-2] if largest else tried[1])
        if following is not None:
            told.append(
                f"the best {field}, {own:g}, is the {'largest' if largest else 'smallest'} of {len(tried)} tried "
                f"({tried[0]:g} to {tried[-1]:g}), so the optimum may lie beyond: try {following:g}"
            )
    return told


def _tried(best: Line, field: str, some: Sequence[Line]) -> list[float]:
    """The values of a field that were tried beside the best row's, in order; none where they are too few to tell."""
    beside = {_value(line, field) for line in some if _others(line, field) == _others(best, field)} - {None}
    if len(beside) >= ENOUGH_VALUES:
        return sorted(beside)
    everywhere = {_value(line, field) for line in some} - {None}
    return sorted(everywhere) if len(everywhere) >= ENOUGH_TRIALS else []


def _others(line: Line, field: str) -> str:
    """All fields but this one and the seed, as text."""
    return repr({**line.rows[0].config.as_dict(), field: None, "seed": None})


def _beyond(field: str, edge: float, neighbour: float) -> float | None:
    """The next value, as far from the edge as that is from its neighbour; None where there is none."""
    if field in SHARES or neighbour == 0 or edge == 0:
        following = 2 * edge - neighbour
        return float(f"{following:.2g}") if 0 <= following < 1 and edge > 0 else None
    following = float(f"{edge * edge / neighbour:.2g}")
    if field in ("batch_size", "epochs"):
        following = round(following)
    return following if following > 0 and following != edge else None


# ---- noise --------------------------------------------------------------------------------------------------------


def _noise(ranked: Sequence[Line]) -> list[str]:
    """Which rows are as good as the best, as far as seeds can tell."""
    best, second = ranked[:2]
    samples = [[measured.adj_val_loss for measured in line.measured] for line in ranked]
    degrees = sum(len(one) - 1 for one in samples)
    if degrees == 0:
        gap = _loss(second) - _loss(best)
        if gap >= CLOSE * _loss(best):
            return []
        return [
            f"the best two rows are {gap:.3f} apart in adj val loss, by one seed each, which may be noise: "
            f"seeds=(0, 1, 2) in the sweep tells ({_named(best)}, {_named(second)})"
        ]
    spread = math.sqrt(sum(statistics.variance(one) * (len(one) - 1) for one in samples if len(one) > 1) / degrees)
    as_good = []
    for line, values in zip(ranked[1:], samples[1:], strict=True):
        half = student_t(degrees) * spread * math.sqrt(1 / len(samples[0]) + 1 / len(values))
        as_good += [line] if _loss(line) - _loss(best) < half else []
    if not as_good:
        return []
    names = ", ".join(map(_named, as_good[:3])) + (", ..." if len(as_good) > 3 else "")
    return [
        f"{counted(len(as_good), 'row')} as good as the best, as far as seeds can tell (their standard deviation in "
        f"adj val loss is {spread:.3f}), so that cost may decide: {names}"
    ]


# ---- length and stability -----------------------------------------------------------------------------------------


def _length(best: Line) -> list[str]:
    """Whether the best row was trained too long, or not long enough."""
    epochs, reached = _value(best, "epochs"), {measured.epoch for measured in best.measured}
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


def _instability(diverged: Sequence[Line], ranked: Sequence[Line]) -> list[str]:
    """The likely reason of losses that are not finite."""
    if not diverged:
        return []
    which = counted(len(diverged), "row") + " diverged"
    lowest = min(_value(line, "learning_rate") for line in diverged)
    highest = max((_value(line, "learning_rate") for line in ranked), default=0.0)
    if ranked and lowest > highest:
        return [
            f"{which}, all at a learning_rate from {lowest:g} up, and none up to {highest:g}: "
            f"the rate is the likely reason; stay below {lowest:g}"
        ]
    if all(_value(line, "max_grad_norm") == 0 for line in diverged):
        return [f"{which}, all without clipping: try max_grad_norm=1"]
    if all(_value(line, "warmup_ratio") == 0 for line in diverged):
        return [f"{which}, all without a warm-up: try warmup_ratio=0.1"]
    return [f"{which}: a lower learning_rate than {lowest:g} is the first thing to try ({_named(diverged[0])})"]
