"""Importance: the field that determines the loss has the largest share; too few rows have none."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from simulated import build_row

from raylm import TrialConfig
from raylm.report.importance import MIN_ROWS, compute_importances
from raylm.results.rows import DIVERGED, Row, SweepRows
from raylm.results.storage import Folder


def sample_rows(count: int) -> list[Row]:
    """Return rows whose loss depends on the learning rate, and a little on the batch size."""
    rows = []
    for n in range(count):
        rate, batch = 10 ** (-5 + n % 7 / 2), (4, 8, 16)[n % 3]
        loss = 3 + abs(math.log10(rate) + 3) + 0.001 * batch
        rows.append(build_row(TrialConfig(learning_rate=rate, batch_size=batch, seed=n), losses=[loss]))
    return rows


STORAGE = Folder(Path("nowhere"))


def test_field_that_determines_the_loss_has_the_largest_share(capfd: pytest.CaptureFixture[str]) -> None:
    ((dataset, chart),) = compute_importances(SweepRows(STORAGE, sample_rows(30)))
    assert dataset == "pydocs"
    assert chart.labels[0] == "learning rate"
    assert set(chart.labels) == {"learning rate", "batch size", "seed"}
    assert abs(sum(chart.values) - 100) < 1e-6
    assert capfd.readouterr() == ("", "")


def test_too_few_done_rows_have_no_importance() -> None:
    few = sample_rows(MIN_ROWS - 1)
    assert compute_importances(SweepRows(STORAGE, few)) == []
    diverged = [build_row(TrialConfig(seed=100 + n), DIVERGED, [1.0]) for n in range(5)]
    assert compute_importances(SweepRows(STORAGE, few + diverged)) == []


def test_single_varying_field_has_no_importance() -> None:
    same = [build_row(TrialConfig(learning_rate=1e-4 * (n + 1)), losses=[3 + n]) for n in range(12)]
    assert compute_importances(SweepRows(STORAGE, same)) == []
