"""Successive halving without waiting: how low a trial's loss must be, at some numbers of tokens, for it to go on.

As ASHA (Li et al. 2020, arXiv:1810.05934) in its stopping form, with two differences. Rungs are tokens trained on, not
epochs. A trial is compared with the trials before it in the sweep's order that had ended when it began, not with
whoever happened to be there: so the same sweep stops the same trials, however long each takes and whatever dies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from raylm.config.trial import TrialConfig
from raylm.results.progress import EvalMetrics
from raylm.results.rows import DIVERGED, FAILED, Row

REDUCTION_FACTOR = 3
"""One in so many trials goes on at a rung, and a rung has so many times the tokens of the one before."""
FIRST_RUNG_DIVISOR = REDUCTION_FACTOR**2
"""The first rung is at this part of an epoch."""


def compute_rungs(epoch_tokens: int, epochs: int) -> list[int]:
    """Tokens trained on at which a trial is judged: a ninth of an epoch, a third, one, three, ..., before its end."""
    found: list[int] = []
    parts = epoch_tokens  # of so many ninths of a token, so that nothing is rounded on the way
    while parts < FIRST_RUNG_DIVISOR * epoch_tokens * epochs:
        found.append(-(-parts // FIRST_RUNG_DIVISOR))
        parts *= REDUCTION_FACTOR
    return [rung for rung in found if rung < epoch_tokens * epochs]


def compute_loss_limits(trial: TrialConfig, earlier_rows: Iterable[Row], epoch_tokens: int) -> dict[int, float]:
    """The highest adj val loss with which a trial goes on, by rung in tokens; rungs where nobody has been are left out.

    Args:
        before: trials that it is compared with, where their dataset and context length are its own.
        epoch_tokens: what it trains on in an epoch.
    """
    peers = [row for row in earlier_rows if _is_comparable(row, trial)]
    found = {}
    for rung in compute_rungs(epoch_tokens, trial.epochs):
        reached = [find_rung_evaluation(row.evaluations, rung) for row in peers]
        if losses := [measured.adj_val_loss for measured in reached if measured]:
            found[rung] = _quantile(losses, 1 / REDUCTION_FACTOR)
    return found


def find_stop_evaluation(evaluations: Sequence[EvalMetrics], loss_limits: Mapping[int, float]) -> EvalMetrics | None:
    """The first evaluation, of those that reach a rung, that is worse than the rung allows."""
    judged = [(find_rung_evaluation(evaluations, rung), limit) for rung, limit in sorted(loss_limits.items())]
    return next((measured for measured, limit in judged if measured and measured.adj_val_loss > limit), None)


def find_rung_evaluation(evaluations: Iterable[EvalMetrics], rung: int) -> EvalMetrics | None:
    """The evaluation with which a trial reaches a rung."""
    return next((measured for measured in evaluations if measured.tokens_seen >= rung), None)


def _is_comparable(row: Row, trial: TrialConfig) -> bool:
    same = (row.config.dataset, row.config.context_length) == (trial.dataset, trial.context_length)
    return same and row.status not in (DIVERGED, FAILED)


def _quantile(values: Iterable[float], q: float) -> float:
    """With a line between neighbours, as NumPy's."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
