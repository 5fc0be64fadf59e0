"""What the report's figures show, as plain data: from rows to points and labels. Drawing them is `drawing`'s.

A figure is made of panels, each of one dataset, and of one model where a dataset has many lines. A panel's legend is
named after the fields that differ in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.results.progress import EvalMetrics
from raylm.results.rows import DONE, Results, Row

MAX_LINES = 6
"""Lines in a panel that can still be told apart, without colour too."""
MAX_BARS = 40
"""Trials in a bar chart."""
MAX_CATEGORIES = 8
"""A parallel axis of more different values than this is a scale of numbers."""
MAX_LABEL_CHARS = 24
"""Of a value in a label; of a longer one, such as a path, its end is shown."""

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """The losses of a trial on its way; points are (epochs trained, nats per token)."""

    label: str
    train: Points
    val: Points


@dataclass(frozen=True)
class CurvesPanel:
    """Loss curves of some trials of a dataset."""

    title: str
    legend: str
    """What the labels tell, such as `context length, batch size`; empty where nothing differs."""
    curves: tuple[Curve, ...]
    loss_range: tuple[float, float]
    """Lowest and highest loss of all the dataset's panels, nats per token, so that they can be compared."""


@dataclass(frozen=True)
class Series:
    """Val loss of trials that are equal but for one field; points are (its value, nats per token)."""

    label: str
    points: Points


@dataclass(frozen=True)
class SeriesPanel:
    """Val loss against one field."""

    title: str
    legend: str
    field: str
    """`context_length` (tokens) or `batch_size` (sequences per optimizer step)."""
    series: tuple[Series, ...]


@dataclass(frozen=True)
class Axis:
    """An axis of parallel coordinates."""

    name: str
    ticks: tuple[tuple[float, str], ...]
    """Place on the axis, from 0 (bottom) to 1 (top), and what is written there."""


@dataclass(frozen=True)
class ParallelPanel:
    """The done trials of a dataset as lines through one axis for each field that differs, and val loss."""

    title: str
    axes: tuple[Axis, ...]
    coordinates: tuple[tuple[float, ...], ...]
    """Of each trial, its place on every axis, from 0 to 1; the last is its val loss."""


@dataclass(frozen=True)
class BarChart:
    """A number for each trial."""

    legend: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    num_omitted: int
    """Trials beyond the first `MOST_BARS`."""


@dataclass(frozen=True)
class Figures:
    """All there is to draw of a sweep; what has no data is empty or None."""

    curves: tuple[CurvesPanel, ...]
    val_loss_by_context_length: tuple[SeriesPanel, ...]
    val_loss_by_batch_size: tuple[SeriesPanel, ...]
    parallel_coordinates: tuple[ParallelPanel, ...]
    training_seconds: BarChart | None
    """Training time, without evaluations and checkpoints."""
    tokens_per_second: BarChart | None
    """Training tokens in that time."""


def build_figures(results: Results) -> Figures:
    """The figures of a sweep, whatever its rows have come to."""
    return Figures(
        curves=_build_curve_panels(results.rows),
        val_loss_by_context_length=_build_series_panels("context_length", results.rows),
        val_loss_by_batch_size=_build_series_panels("batch_size", results.rows),
        parallel_coordinates=_build_parallel_panels(results.rows),
        training_seconds=_build_bar_chart(results.rows, lambda seconds, tokens: seconds),
        tokens_per_second=_build_bar_chart(results.rows, lambda seconds, tokens: tokens / seconds),
    )


# ---- labels and panels --------------------------------------------------------------------------------------------


def find_varying_fields(rows: Iterable[Row], *exclude: str) -> list[str]:
    """The fields that are not the same in all these rows, except some."""
    configs = [row.config.as_dict() for row in rows]
    names = [field.name for field in fields(TrialConfig) if field.name not in exclude]
    return [name for name in names if len({config[name] for config in configs}) > 1]


def format_field_name(name: str) -> str:
    """A field's name as people write it."""
    return name.replace("_", " ")


def format_field_value(value: Any) -> str:
    """A field's value in a label."""
    if value is None or isinstance(value, bool):
        return {None: "default", True: "yes", False: "no"}[value]
    shown = " ".join((f"{value:.3g}" if isinstance(value, float) else str(value)).split())
    return shown if len(shown) <= MAX_LABEL_CHARS else "…" + shown[1 - MAX_LABEL_CHARS :]


def _format_label(row: Row, names: Sequence[str]) -> str:
    return ", ".join(format_field_value(getattr(row.config, name)) for name in names)


def _format_legend(names: Sequence[str]) -> str:
    return ", ".join(map(format_field_name, names))


def _split_into_panels(
    lines: Sequence[list[Row]], rows: Sequence[Row], *exclude: str
) -> list[tuple[str, list[str], list[list[Row]]]]:
    """Lines (each of one or more rows) by dataset, or by dataset and model where these are too many.

    Where a model alone has too many, those with the lowest val loss are kept.

    Args:
        lines: What is to be drawn.
        rows: All of the sweep; the fields that differ in them name a line.
        but: Fields that do not.

    Returns:
        Title, names of the fields that tell the lines apart, and lines of each panel.
    """
    panels = []
    for of_dataset in _group_by(lines, lambda line: line[0].config.dataset):
        crowded = len(of_dataset) > MAX_LINES
        for panel in _group_by(of_dataset, lambda line: line[0].config.model) if crowded else [of_dataset]:
            config = panel[0][0].config
            told = ["dataset", *(["model"] if all(line[0].config.model == config.model for line in panel) else [])]
            title = ", ".join(format_field_value(getattr(config, name)) for name in told)
            kept = sorted(sorted(panel, key=_lowest_val_loss)[:MAX_LINES], key=panel.index)
            names = find_varying_fields((row for row in rows if row.config.dataset == config.dataset), *told, *exclude)
            panels.append((title if kept == panel else f"{title}: best {MAX_LINES} of {len(panel)}", names, kept))
    return panels


def _group_by(lines: Sequence[list[Row]], key: Callable[[list[Row]], Any]) -> list[list[list[Row]]]:
    groups: dict[Any, list[list[Row]]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return list(groups.values())


def _lowest_val_loss(line: Sequence[Row]) -> float:
    return min(row.metrics.val_loss if row.metrics else math.inf for row in line)


def _ranked_metrics(row: Row) -> EvalMetrics | None:
    """The losses that a row is ranked by: of done rows alone."""
    return row.metrics if row.status == DONE and row.metrics and row.metrics.is_finite else None


# ---- the figures --------------------------------------------------------------------------------------------------


def _build_curve(row: Row, names: Sequence[str]) -> Curve:
    assert row.latest_checkpoint is not None
    progress = row.latest_checkpoint.progress
    epochs_per_step = row.config.epochs / progress.total_steps
    train = [(step * epochs_per_step, loss) for step, loss in progress.curve]
    val = [(one.step * epochs_per_step, one.val_loss) for one in progress.evaluations]
    note = "" if row.status == DONE else f" ({row.status})"
    return Curve(_format_label(row, names) + note, _finite_points(train), _finite_points(val))


def _finite_points(points: Iterable[tuple[float, float]]) -> Points:
    return tuple(point for point in points if math.isfinite(point[1]))


def _build_curve_panels(rows: Sequence[Row]) -> tuple[CurvesPanel, ...]:
    begun = [[row] for row in rows if row.latest_checkpoint and any(_all_points(_build_curve(row, [])))]
    panels = []
    for title, names, lines in _split_into_panels(begun, rows):
        curves = tuple(_build_curve(row, names) for (row,) in lines)
        panels.append((lines[0][0].config.dataset, title, _format_legend(names), curves))
    ranges = {}
    for name in {panel[0] for panel in panels}:
        losses = [loss for one, *_, curves in panels if one == name for c in curves for _, loss in _all_points(c)]
        ranges[name] = (min(losses), max(losses))
    return tuple(CurvesPanel(title, legend, curves, ranges[name]) for name, title, legend, curves in panels)


def _all_points(curve: Curve) -> Points:
    return curve.train + curve.val


def _build_series_panels(field: str, rows: Sequence[Row]) -> tuple[SeriesPanel, ...]:
    """Val loss against a field, all other fields being equal along a line."""
    ranked = [[row] for row in rows if _ranked_metrics(row)]
    equal = _group_by(ranked, lambda line: tuple(v for k, v in line[0].config.as_dict().items() if k != field))
    lines = [[row for (row,) in group] for group in equal if len(group) > 1]
    panels = []
    for title, names, kept in _split_into_panels(lines, rows, field):
        drawn = (Series(_format_label(line[0], names), _series_points(line, field)) for line in kept)
        panels.append(SeriesPanel(title, _format_legend(names), field, tuple(drawn)))
    return tuple(panels)


def _series_points(line: Sequence[Row], field: str) -> Points:
    return tuple(sorted((getattr(row.config, field), one.val_loss) for row in line if (one := _ranked_metrics(row))))


def _build_parallel_panels(rows: Sequence[Row]) -> tuple[ParallelPanel, ...]:
    panels = []
    for group in _group_by([[row] for row in rows if _ranked_metrics(row)], lambda line: line[0].config.dataset):
        ranked = [row for (row,) in group]
        if names := find_varying_fields(ranked, "dataset"):
            axes = [
                _build_axis(format_field_name(name), [getattr(row.config, name) for row in ranked]) for name in names
            ]
            axes.append(
                _build_numeric_axis("val loss", [one.val_loss for row in ranked if (one := _ranked_metrics(row))])
            )
            places = zip(*(places for _, places in axes), strict=True)
            panels.append(
                ParallelPanel(
                    format_field_value(ranked[0].config.dataset), tuple(axis for axis, _ in axes), tuple(places)
                )
            )
    return tuple(panels)


def _build_axis(name: str, values: Sequence[Any]) -> tuple[Axis, list[float]]:
    """An axis and where on it the values are: to scale where they are many numbers, else evenly spaced."""
    numbers = [value for value in values if isinstance(value, int | float)]
    names = [value for value in dict.fromkeys(values) if not isinstance(value, int | float)]
    different = [*names, *sorted(set(numbers))]
    if not names and len(different) > MAX_CATEGORIES:
        return _build_numeric_axis(name, values)
    place = {value: index / max(1, len(different) - 1) for index, value in enumerate(different)}
    return Axis(name, tuple((place[value], format_field_value(value)) for value in different)), [
        place[value] for value in values
    ]


def _build_numeric_axis(name: str, values: Sequence[float]) -> tuple[Axis, list[float]]:
    """An axis of numbers, logarithmic where they spread over a decade or more."""
    low, high = min(values), max(values)
    if low == high:
        return Axis(name, ((0.5, f"{low:.4g}"),)), [0.5] * len(values)
    if low > 0 and high / low >= 10:
        start, span = math.log(low), math.log(high / low)
        ticks = tuple((part / 4, f"{math.exp(start + span * part / 4):.2g}") for part in range(5))
        return Axis(name, ticks), [(math.log(value) - start) / span for value in values]
    digits = max(0, 1 - math.floor(math.log10(high - low)))
    ticks = tuple((part / 4, f"{low + (high - low) * part / 4:.{digits}f}") for part in range(5))
    return Axis(name, ticks), [(value - low) / (high - low) for value in values]


def _build_bar_chart(rows: Sequence[Row], value_fn: Callable[[float, int], float]) -> BarChart | None:
    timed = [row for row in rows if row.latest_checkpoint and row.latest_checkpoint.progress.training_seconds > 0]
    shown = timed[:MAX_BARS]
    names = find_varying_fields(shown) or ["model"]
    progress = [row.latest_checkpoint.progress for row in shown if row.latest_checkpoint]
    values = tuple(value_fn(one.training_seconds, one.tokens_seen) for one in progress)
    labels = tuple(_format_label(row, names) for row in shown)
    return BarChart(_format_legend(names), labels, values, len(timed) - len(shown)) if timed else None
