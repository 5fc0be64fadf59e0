"""Data of the report's figures: points and labels, derived from rows. `plots` draws them.

A figure consists of panels. Each panel shows one dataset, or one model of it where the dataset has many lines. Lines
are labelled with the fields that differ within the panel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raylm.report.labels import find_varying_fields, format_field_name, format_field_value, format_label, format_legend
from raylm.results.measures import NATS_PER_BYTE, VAL_LOSS
from raylm.results.rows import DONE, Row, SweepRows

MAX_LINES = 6
"""Maximum number of lines in a panel: as many as can be distinguished without color."""
MAX_BARS = 40
"""Maximum number of trials in a bar chart."""
MAX_CATEGORIES = 8
"""Maximum number of different values of an axis with evenly spaced values; above it, numbers are drawn to scale."""
NUM_INTERVALS = 4
"""Intervals between the ticks of a numeric axis."""

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """Losses of a trial during training; points are (epochs trained, nats per token)."""

    label: str
    train: Points
    val: Points

    @property
    def points(self) -> Points:
        """Points of both losses."""
        return self.train + self.val


@dataclass(frozen=True)
class CurvesPanel:
    """Loss curves of trials of one dataset."""

    title: str
    legend: str
    """Fields that the labels show, such as `context length, batch size`; empty if none differs."""
    curves: tuple[Curve, ...]
    loss_range: tuple[float, float]
    """Lowest and highest loss over all panels of the dataset, nats per token, for a common scale."""


@dataclass(frozen=True)
class Series:
    """Val loss of trials that differ in one field only; points are (value of the field, nats per token)."""

    label: str
    points: Points


@dataclass(frozen=True)
class SeriesPanel:
    """Val loss as a function of one field."""

    title: str
    legend: str
    field: str
    """`context_length` (tokens) or `batch_size` (sequences per optimizer step)."""
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Axis:
    """Axis of parallel coordinates."""

    name: str
    ticks: tuple[tuple[float, str], ...]
    """Position on the axis, from 0 (bottom) to 1 (top), and label."""


@dataclass(frozen=True)
class ParallelPanel:
    """Done trials of a dataset as lines through one axis per varying field and an axis of the loss."""

    title: str
    axes: tuple[Axis, ...]
    coordinates: tuple[tuple[float, ...], ...]
    """Positions of each trial on all axes, from 0 to 1; the last is its loss."""


@dataclass(frozen=True)
class BarChart:
    """Bar chart with a number per trial, or per field."""

    legend: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    num_omitted: int = 0
    """Number of trials beyond the first `MAX_BARS`."""


@dataclass(frozen=True)
class Figures:
    """Data of all figures of a sweep; a figure without data is empty or None."""

    curves: tuple[CurvesPanel, ...]
    val_loss_by_context_length: tuple[SeriesPanel, ...]
    val_loss_by_batch_size: tuple[SeriesPanel, ...]
    parallel_coordinates: tuple[ParallelPanel, ...]
    training_seconds: BarChart | None
    """Training time, without evaluations and checkpoints."""
    tokens_per_second: BarChart | None
    """Training tokens per second of training time."""


def build_figures(results: SweepRows) -> Figures:
    """Return the figures of a sweep with rows of any status."""
    return Figures(
        curves=_build_curve_panels(results.rows),
        val_loss_by_context_length=_build_series_panels("context_length", results.rows),
        val_loss_by_batch_size=_build_series_panels("batch_size", results.rows),
        parallel_coordinates=_build_parallel_panels(results),
        training_seconds=_build_bar_chart(results.rows, lambda seconds, tokens: seconds),
        tokens_per_second=_build_bar_chart(results.rows, lambda seconds, tokens: tokens / seconds),
    )


# ---- panels -------------------------------------------------------------------------------------------------------

Line = list[Row]
"""Rows of one line: one row for a curve, several for a series."""


@dataclass(frozen=True)
class _Panel:
    """Lines of one dataset, or of one model of it."""

    title: str
    names: list[str]
    """Fields that distinguish the lines."""
    lines: list[Line]


def _split_into_panels(lines: Sequence[Line], rows: Sequence[Row], *exclude: str) -> list[_Panel]:
    """Split lines by dataset, and by model where a dataset has more than `MAX_LINES`.

    A panel that still has more keeps those with the lowest val loss.

    Args:
        lines: lines to draw.
        rows: all rows of the sweep; a line is labelled with the fields that differ among them.
        exclude: fields to leave out of the labels.
    """
    panels = []
    for of_dataset in _group_by(lines, lambda line: line[0].config.dataset):
        is_crowded = len(of_dataset) > MAX_LINES
        for panel in _group_by(of_dataset, lambda line: line[0].config.model) if is_crowded else [of_dataset]:
            config = panel[0][0].config
            is_one_model = all(line[0].config.model == config.model for line in panel)
            common = ("dataset", "model") if is_one_model else ("dataset",)
            title = ", ".join(format_field_value(getattr(config, name)) for name in common)
            shown = sorted(sorted(panel, key=_lowest_val_loss)[:MAX_LINES], key=panel.index)
            same_dataset = (row for row in rows if row.config.dataset == config.dataset)
            names = find_varying_fields(same_dataset, *common, *exclude)
            title += "" if shown == panel else f": best {MAX_LINES} of {len(panel)}"
            panels.append(_Panel(title, names, shown))
    return panels


def _group_by(lines: Sequence[Line], key: Callable[[Line], Any]) -> list[list[Line]]:
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return list(groups.values())


def _lowest_val_loss(line: Line) -> float:
    return min(row.metrics.val_loss if row.metrics else math.inf for row in line)


def _is_ranked(row: Row) -> bool:
    """Return whether a row is done and has finite losses."""
    return row.status == DONE and row.metrics is not None and row.metrics.is_finite


# ---- figures ------------------------------------------------------------------------------------------------------


def _build_curve(row: Row, names: Sequence[str]) -> Curve:
    assert row.latest_checkpoint is not None
    progress = row.latest_checkpoint.progress
    epochs_per_step = row.config.epochs / progress.total_steps
    train = [(step * epochs_per_step, loss) for step, loss in progress.curve]
    val = [(evaluation.step * epochs_per_step, evaluation.val_loss) for evaluation in progress.evaluations]
    status = "" if row.status == DONE else f" ({row.status})"
    return Curve(format_label(row, names) + status, _finite_points(train), _finite_points(val))


def _finite_points(points: Iterable[tuple[float, float]]) -> Points:
    return tuple(point for point in points if math.isfinite(point[1]))


def _build_curve_panels(rows: Sequence[Row]) -> tuple[CurvesPanel, ...]:
    started = [[row] for row in rows if row.latest_checkpoint and _build_curve(row, []).points]
    panels = []
    losses: dict[str, list[float]] = {}
    for panel in _split_into_panels(started, rows):
        curves = tuple(_build_curve(row, panel.names) for (row,) in panel.lines)
        dataset = panel.lines[0][0].config.dataset
        losses.setdefault(dataset, []).extend(loss for curve in curves for _, loss in curve.points)
        panels.append((panel, dataset, curves))
    ranges = {dataset: (min(values), max(values)) for dataset, values in losses.items()}
    return tuple(
        CurvesPanel(panel.title, format_legend(panel.names), curves, ranges[dataset])
        for panel, dataset, curves in panels
    )


def _build_series_panels(field: str, rows: Sequence[Row]) -> tuple[SeriesPanel, ...]:
    """Return panels of the val loss over a field; rows of a line are equal in all other fields."""
    ranked = [[row] for row in rows if _is_ranked(row)]
    groups = _group_by(ranked, lambda line: tuple(v for k, v in line[0].config.as_dict().items() if k != field))
    lines = [[row for (row,) in group] for group in groups if len(group) > 1]
    panels = []
    for panel in _split_into_panels(lines, rows, field):
        series = (Series(format_label(line[0], panel.names), _series_points(line, field)) for line in panel.lines)
        panels.append(SeriesPanel(panel.title, format_legend(panel.names), field, tuple(series)))
    return tuple(panels)


def _series_points(line: Line, field: str) -> Points:
    return tuple(sorted((getattr(row.config, field), row.metrics.val_loss) for row in line if row.metrics))


def _build_parallel_panels(results: SweepRows) -> tuple[ParallelPanel, ...]:
    panels, compared = [], [row for row in results.rows if _is_ranked(row) and results.ranked_loss(row) is not None]
    for dataset in results.measures:
        ranked = [row for row in compared if row.config.dataset == dataset]
        if names := find_varying_fields(ranked, "dataset"):
            values = [[getattr(row.config, name) for row in ranked] for name in names]
            axes = [_build_axis(format_field_name(name), column) for name, column in zip(names, values, strict=True)]
            axes += [_build_loss_axis(results, ranked)]
            coordinates = tuple(zip(*(positions for _, positions in axes), strict=True))
            panels.append(ParallelPanel(format_field_value(dataset), tuple(axis for axis, _ in axes), coordinates))
    return tuple(panels)


def _build_loss_axis(results: SweepRows, rows: Sequence[Row]) -> tuple[Axis, list[float]]:
    """Return the axis of the loss of rows of a dataset: val loss, or nats per byte where tokenizers differ."""
    if results.measures[rows[0].config.dataset].name == NATS_PER_BYTE:
        return _build_numeric_axis(NATS_PER_BYTE, [results.ranked_loss(row) or 0.0 for row in rows])
    return _build_numeric_axis(VAL_LOSS, [row.metrics.val_loss for row in rows if row.metrics])


def _build_axis(name: str, values: Sequence[Any]) -> tuple[Axis, list[float]]:
    """Return an axis and the positions of the values: to scale for many numbers, else evenly spaced."""
    numbers = {value for value in values if isinstance(value, int | float)}
    categories = [value for value in dict.fromkeys(values) if value not in numbers]
    different = [*categories, *sorted(numbers)]
    if not categories and len(different) > MAX_CATEGORIES:
        return _build_numeric_axis(name, values)
    position = {value: index / max(1, len(different) - 1) for index, value in enumerate(different)}
    ticks = tuple((position[value], format_field_value(value)) for value in different)
    return Axis(name, ticks), [position[value] for value in values]


def _build_numeric_axis(name: str, values: Sequence[float]) -> tuple[Axis, list[float]]:
    """Return an axis of numbers and their positions; the axis is logarithmic if they span a decade or more."""
    low, high = min(values), max(values)
    if low == high:
        return Axis(name, ((0.5, f"{low:.4g}"),)), [0.5] * len(values)
    fractions = [index / NUM_INTERVALS for index in range(NUM_INTERVALS + 1)]
    if low > 0 and high / low >= 10:
        start, span = math.log(low), math.log(high / low)
        ticks = tuple((fraction, f"{math.exp(start + span * fraction):.2g}") for fraction in fractions)
        return Axis(name, ticks), [(math.log(value) - start) / span for value in values]
    digits = max(0, 1 - math.floor(math.log10(high - low)))
    ticks = tuple((fraction, f"{low + (high - low) * fraction:.{digits}f}") for fraction in fractions)
    return Axis(name, ticks), [(value - low) / (high - low) for value in values]


def _build_bar_chart(rows: Sequence[Row], value_fn: Callable[[float, int], float]) -> BarChart | None:
    """Return a bar for each trial that was timed.

    Args:
        rows: all rows of the sweep.
        value_fn: function of training seconds and training tokens that gives the length of a bar.
    """
    timed = [row for row in rows if row.latest_checkpoint and row.latest_checkpoint.progress.training_seconds > 0]
    if not timed:
        return None
    shown = timed[:MAX_BARS]
    names = find_varying_fields(shown) or ["model"]
    progresses = [row.latest_checkpoint.progress for row in shown if row.latest_checkpoint]
    values = tuple(value_fn(progress.training_seconds, progress.tokens_seen) for progress in progresses)
    labels = tuple(format_label(row, names) for row in shown)
    return BarChart(format_legend(names), labels, values, len(timed) - len(shown))
