"""Progress of a trial: the training loss rises if it does by more than noise."""

from __future__ import annotations

import math
import random

import pytest

from raylm.results.progress import Progress


def progress(slope: float, noise: float, points: int = 100) -> Progress:
    """Return a curve that falls quickly and then changes by `slope` over its second half."""
    rng = random.Random(3)
    curve = []
    for step in range(points):
        late = max(0.0, step / points - 0.5) * 2 * slope
        curve.append((step + 1, 4 + 2 * math.exp(-8 * step / points) + late + rng.gauss(0, noise)))
    return Progress(points, 8, points, curve=curve)


@pytest.mark.parametrize(
    ("slope", "noise", "is_rising"),
    [
        (0.5, 0.02, True),
        (0.2, 0.02, True),
        (0.0, 0.02, False),
        (0.0, 0.5, False),
        (-0.3, 0.1, False),
        (0.2, 0.5, False),
    ],
)
def test_rising_loss_exceeds_noise(slope: float, noise: float, is_rising: bool) -> None:
    assert progress(slope, noise).is_loss_rising is is_rising


def test_short_curve_is_not_rising() -> None:
    assert not progress(5.0, 0.0, points=20).is_loss_rising
    assert not Progress(10, 8).is_loss_rising
