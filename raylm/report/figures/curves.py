"""Loss curves: training and val loss of each trial over its epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from raylm.report.figures.grouping import split_into_panels
from raylm.report.figures.panels import Curve, CurvesPanel, Points
from raylm.report.labels import format_label, format_legend
from raylm.results.rows import DONE, Row


def build_curve_panels(rows: Sequence[Row]) -> tuple[CurvesPanel, ...]:
    """Return the curves of rows of any status that have a finite loss."""
    started = [[row] for row in rows if row.latest_checkpoint and _build_curve(row, []).points]
    panels = []
    losses: dict[str, list[float]] = {}
    for panel in split_into_panels(started, rows):
        curves = tuple(_build_curve(row, panel.names) for (row,) in panel.lines)
        dataset = panel.lines[0][0].config.dataset
        losses.setdefault(dataset, []).extend(loss for curve in curves for _, loss in curve.points)
        panels.append((panel, dataset, curves))
    ranges = {dataset: (min(values), max(values)) for dataset, values in losses.items()}
    return tuple(
        CurvesPanel(panel.title, format_legend(panel.names), curves, ranges[dataset])
        for panel, dataset, curves in panels
    )


def _build_curve(row: Row, names: Sequence[str]) -> Curve:
    assert row.latest_checkpoint is not None
    progress = row.latest_checkpoint.progress
    epochs_per_step = row.config.epochs / progress.total_steps
    train = [(step * epochs_per_step, loss) for step, loss in progress.curve]
    start = [] if row.zero_shot_loss is None else [(0.0, row.zero_shot_loss)]
    val = start + [(evaluation.step * epochs_per_step, evaluation.val_loss) for evaluation in progress.evaluations]
    status = "" if row.status == DONE else f" ({row.status})"
    label = format_label(row, names) + status
    return Curve(label, _finite_points(train), _finite_points(val), row.config.run_name)


def _finite_points(points: Iterable[tuple[float, float]]) -> Points:
    return tuple(point for point in points if math.isfinite(point[1]))
