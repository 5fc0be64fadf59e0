"""Importance: the field that the loss follows has the largest share; too few rows have none."""

from __future__ import annotations

import math
from pathlib import Path

from simulated import build_row

from raylm import TrialConfig
from raylm.report.importance import MIN_ROWS, compute_importances
from raylm.results.rows import DIVERGED, Results, Row
from raylm.results.storage import Folder


def rows(number: int) -> list[Row]:
    """Rows whose loss follows the learning rate, and the batch size but little."""
    found = []
    for n in range(number):
        rate, batch = 10 ** (-5 + n % 7 / 2), (4, 8, 16)[n % 3]
        loss = 3 + abs(math.log10(rate) + 3) + 0.001 * batch
        found.append(build_row(TrialConfig(learning_rate=rate, batch_size=batch, seed=n), losses=[loss]))
    return found


NOWHERE = Folder(Path("nowhere"))


def test_the_field_that_the_loss_follows_has_the_largest_share() -> None:
    ((dataset, bars),) = compute_importances(Results(NOWHERE, rows(30)))
    assert dataset == "pydocs"
    assert bars.labels[0] == "learning rate"
    assert set(bars.labels) == {"learning rate", "batch size", "seed"}
    assert abs(sum(bars.values) - 100) < 1e-6


def test_too_few_rows_have_no_importance_and_diverged_ones_do_not_count() -> None:
    few = rows(MIN_ROWS - 1)
    assert compute_importances(Results(NOWHERE, few)) == []
    diverged = [build_row(TrialConfig(seed=100 + n), DIVERGED, [1.0]) for n in range(5)]
    assert compute_importances(Results(NOWHERE, few + diverged)) == []


def test_rows_that_differ_in_one_field_have_no_importance() -> None:
    same = [build_row(TrialConfig(learning_rate=1e-4 * (n + 1)), losses=[3 + n]) for n in range(12)]
    assert compute_importances(Results(NOWHERE, same)) == []
