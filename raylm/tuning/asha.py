"""ASHA: early stopping of trials whose loss is high compared with earlier trials at the same number of tokens.

The stopping variant of ASHA (Li et al. 2020, arXiv:1810.05934), with two differences. Rungs are numbers of training
tokens, not epochs. A trial is compared with trials earlier in the sweep's order that had ended when it started, not
with all that happen to have reached the rung: the same sweep stops the same trials, whatever their speed and failures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter

from raylm.config.trial import TrialConfig
from raylm.results.measures import PER_WORD, Measure
from raylm.results.progress import EvalMetrics
from raylm.results.rows import DIVERGED, FAILED, Row

REDUCTION_FACTOR = 3
"""Inverse of the fraction of trials that pass a rung, and ratio of tokens between consecutive rungs."""
FIRST_RUNG_DIVISOR = REDUCTION_FACTOR**2
"""Tokens of an epoch divided by those of the first rung."""


def compute_rungs(epoch_tokens: int, epochs: int) -> list[int]:
    """Return the training tokens of all rungs: 1/9 of an epoch, 1/3, 1, 3, ..., less than the trial's total."""
    rungs: list[int] = []
    ninths = epoch_tokens  # tokens times 9, so that rounding errors do not accumulate
    while ninths < FIRST_RUNG_DIVISOR * epoch_tokens * epochs:
        rungs.append(-(-ninths // FIRST_RUNG_DIVISOR))
        ninths *= REDUCTION_FACTOR
    return [rung for rung in rungs if rung < epoch_tokens * epochs]


def compute_loss_limits(
    trial: TrialConfig,
    earlier_rows: Iterable[Row],
    epoch_tokens: int,
    measure: Measure = PER_WORD,
    *,
    any_context: bool = False,
) -> dict[int, float]:
    """Return the highest loss with which a trial passes, by rung in tokens, for rungs with results.

    Args:
        earlier_rows: trials to compare with; only those with the same dataset and context length count.
        epoch_tokens: training tokens of an epoch.
        measure: the loss to compare; a trial whose loss does not compare has no limits and sets none.
        any_context: trials of other context lengths count too, as in a search, which has one best trial.
    """
    peers = [row for row in earlier_rows if _is_comparable(row, trial, measure, any_context)]
    limits = {}
    for rung in compute_rungs(epoch_tokens, trial.epochs):
        evaluations = [(row.config, find_rung_evaluation(row.evaluations, rung)) for row in peers]
        if losses := [measure.compute(config, evaluation) for config, evaluation in evaluations if evaluation]:
            limits[rung] = _quantile(losses, 1 / REDUCTION_FACTOR)
    return limits


def find_stop_evaluation(
    evaluations: Sequence[EvalMetrics],
    loss_limits: Mapping[int, float],
    compute_loss: Callable[[EvalMetrics], float] = attrgetter("adj_val_loss"),
) -> EvalMetrics | None:
    """Return the first evaluation at a rung whose loss is above the limit, or None."""
    at_rungs = [(find_rung_evaluation(evaluations, rung), limit) for rung, limit in sorted(loss_limits.items())]
    return next((evaluation for evaluation, limit in at_rungs if evaluation and compute_loss(evaluation) > limit), None)


def find_rung_evaluation(evaluations: Iterable[EvalMetrics], rung: int) -> EvalMetrics | None:
    """Return the first evaluation at or after a rung, or None."""
    return next((evaluation for evaluation in evaluations if evaluation.tokens_seen >= rung), None)


def _is_comparable(row: Row, trial: TrialConfig, measure: Measure, any_context: bool) -> bool:
    """Return whether a row's losses can be compared with a trial's."""
    same_context = any_context or row.config.context_length == trial.context_length
    same = same_context and row.config.dataset_spec == trial.dataset_spec
    return same and measure.compares(row.config) and measure.compares(trial) and row.status not in (DIVERGED, FAILED)


def _quantile(values: Iterable[float], q: float) -> float:
    """Return a quantile with linear interpolation between neighbours, as `numpy.quantile`.

    NumPy's own differs in the last bit for some values, and would stop other trials than earlier launches did.
    """
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])
