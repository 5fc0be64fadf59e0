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
from raylm.results.progress import Measured
from raylm.results.rows import DONE, Results, Row

MOST_LINES = 6
"""Lines in a panel that can still be told apart, without colour too."""
MOST_BARS = 40
"""Trials in a bar chart."""
MOST_NAMED_VALUES = 8
"""A parallel axis of more different values than this is a scale of numbers."""
MOST_LETTERS = 24
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
    losses: tuple[float, float]
    """Lowest and highest loss of all the dataset's panels, nats per token, so that they can be compared."""


@dataclass(frozen=True)
class Line:
    """Val loss of trials that are equal but for one field; points are (its value, nats per token)."""

    label: str
    points: Points


@dataclass(frozen=True)
class LinesPanel:
    """Val loss against one field."""

    title: str
    legend: str
    field: str
    """`context_length` (tokens) or `batch_size` (sequences per optimizer step)."""
    lines: tuple[Line, ...]


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
    lines: tuple[tuple[float, ...], ...]
    """Of each trial, its place on every axis, from 0 to 1; the last is its val loss."""


@dataclass(frozen=True)
class Bars:
    """A number for each trial."""

    legend: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    left_out: int
    """Trials beyond the first `MOST_BARS`."""


@dataclass(frozen=True)
class Figures:
    """All there is to draw of a sweep; what has no data is empty or None."""

    curves: tuple[CurvesPanel, ...]
    by_context_length: tuple[LinesPanel, ...]
    by_batch_size: tuple[LinesPanel, ...]
    parallel: tuple[ParallelPanel, ...]
    seconds: Bars | None
    """Training time, without evaluations and checkpoints."""
    tokens_per_second: Bars | None
    """Training tokens in that time."""


def collect(results: Results) -> Figures:
    """The figures of a sweep, whatever its rows have come to."""
    return Figures(
        curves=_curves(results.rows),
        by_context_length=_against("context_length", results.rows),
        by_batch_size=_against("batch_size", results.rows),
        parallel=_parallel(results.rows),
        seconds=_bars(results.rows, lambda seconds, tokens: seconds),
        tokens_per_second=_bars(results.rows, lambda seconds, tokens: tokens / seconds),
    )


# ---- labels and panels --------------------------------------------------------------------------------------------


def varying(rows: Iterable[Row], *but: str) -> list[str]:
    """The fields that are not the same in all these rows, except some."""
    configs = [row.config.as_dict() for row in rows]
    names = [field.name for field in fields(TrialConfig) if field.name not in but]
    return [name for name in names if len({config[name] for config in configs}) > 1]


def words(name: str) -> str:
    """A field's name as people write it."""
    return name.replace("_", " ")


def text(value: Any) -> str:
    """A field's value in a label."""
    if value is None or isinstance(value, bool):
        return {None: "default", True: "yes", False: "no"}[value]
    shown = " ".join((f"{value:.3g}" if isinstance(value, float) else str(value)).split())
    return shown if len(shown) <= MOST_LETTERS else "…" + shown[1 - MOST_LETTERS :]


def _label(row: Row, names: Sequence[str]) -> str:
    return ", ".join(text(getattr(row.config, name)) for name in names)


def _legend(names: Sequence[str]) -> str:
    return ", ".join(map(words, names))


def _panels(lines: Sequence[list[Row]], rows: Sequence[Row], *but: str) -> list[tuple[str, list[str], list[list[Row]]]]:
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
    for of_dataset in _groups(lines, lambda line: line[0].config.dataset):
        crowded = len(of_dataset) > MOST_LINES
        for panel in _groups(of_dataset, lambda line: line[0].config.model) if crowded else [of_dataset]:
            config = panel[0][0].config
            told = ["dataset", *(["model"] if all(line[0].config.model == config.model for line in panel) else [])]
            title = ", ".join(text(getattr(config, name)) for name in told)
            kept = sorted(sorted(panel, key=_lowest)[:MOST_LINES], key=panel.index)
            names = varying((row for row in rows if row.config.dataset == config.dataset), *told, *but)
            panels.append((title if kept == panel else f"{title}: best {MOST_LINES} of {len(panel)}", names, kept))
    return panels


def _groups(lines: Sequence[list[Row]], key: Callable[[list[Row]], Any]) -> list[list[list[Row]]]:
    groups: dict[Any, list[list[Row]]] = {}
    for line in lines:
        groups.setdefault(key(line), []).append(line)
    return list(groups.values())


def _lowest(line: Sequence[Row]) -> float:
    return min(row.measured.val_loss if row.measured else math.inf for row in line)


def _measured(row: Row) -> Measured | None:
    """The losses that a row is ranked by: of done rows alone."""
    return row.measured if row.status == DONE and row.measured and row.measured.finite else None


# ---- the figures --------------------------------------------------------------------------------------------------


def _curve(row: Row, names: Sequence[str]) -> Curve:
    assert row.latest is not None
    progress = row.latest.progress
    epochs_per_step = row.config.epochs / progress.total_steps
    train = [(step * epochs_per_step, loss) for step, loss in progress.curve]
    val = [(one.step * epochs_per_step, one.val_loss) for one in progress.evaluations]
    note = "" if row.status == DONE else f" ({row.status})"
    return Curve(_label(row, names) + note, _finite(train), _finite(val))


def _finite(points: Iterable[tuple[float, float]]) -> Points:
    return tuple(point for point in points if math.isfinite(point[1]))


def _curves(rows: Sequence[Row]) -> tuple[CurvesPanel, ...]:
    begun = [[row] for row in rows if row.latest and any(_curve_points(_curve(row, [])))]
    panels = []
    for title, names, lines in _panels(begun, rows):
        curves = tuple(_curve(row, names) for (row,) in lines)
        panels.append((lines[0][0].config.dataset, title, _legend(names), curves))
    ranges = {}
    for name in {panel[0] for panel in panels}:
        losses = [loss for one, *_, curves in panels if one == name for c in curves for _, loss in _curve_points(c)]
        ranges[name] = (min(losses), max(losses))
    return tuple(CurvesPanel(title, legend, curves, ranges[name]) for name, title, legend, curves in panels)


def _curve_points(curve: Curve) -> Points:
    return curve.train + curve.val


def _against(name: str, rows: Sequence[Row]) -> tuple[LinesPanel, ...]:
    """Val loss against a field, all other fields being equal along a line."""
    ranked = [[row] for row in rows if _measured(row)]
    equal = _groups(ranked, lambda line: tuple(v for k, v in line[0].config.as_dict().items() if k != name))
    lines = [[row for (row,) in group] for group in equal if len(group) > 1]
    panels = []
    for title, names, kept in _panels(lines, rows, name):
        drawn = (Line(_label(line[0], names), _points(line, name)) for line in kept)
        panels.append(LinesPanel(title, _legend(names), name, tuple(drawn)))
    return tuple(panels)


def _points(line: Sequence[Row], name: str) -> Points:
    return tuple(sorted((getattr(row.config, name), one.val_loss) for row in line if (one := _measured(row))))


def _parallel(rows: Sequence[Row]) -> tuple[ParallelPanel, ...]:
    panels = []
    for group in _groups([[row] for row in rows if _measured(row)], lambda line: line[0].config.dataset):
        ranked = [row for (row,) in group]
        if names := varying(ranked, "dataset"):
            axes = [_axis(words(name), [getattr(row.config, name) for row in ranked]) for name in names]
            axes.append(_scale("val loss", [one.val_loss for row in ranked if (one := _measured(row))]))
            places = zip(*(places for _, places in axes), strict=True)
            panels.append(ParallelPanel(text(ranked[0].config.dataset), tuple(axis for axis, _ in axes), tuple(places)))
    return tuple(panels)


def _axis(name: str, values: Sequence[Any]) -> tuple[Axis, list[float]]:
    """An axis and where on it the values are: to scale where they are many numbers, else evenly spaced."""
    numbers = [value for value in values if isinstance(value, int | float)]
    names = [value for value in dict.fromkeys(values) if not isinstance(value, int | float)]
    different = [*names, *sorted(set(numbers))]
    if not names and len(different) > MOST_NAMED_VALUES:
        return _scale(name, values)
    place = {value: index / max(1, len(different) - 1) for index, value in enumerate(different)}
    return Axis(name, tuple((place[value], text(value)) for value in different)), [place[value] for value in values]


def _scale(name: str, values: Sequence[float]) -> tuple[Axis, list[float]]:
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


def _bars(rows: Sequence[Row], number: Callable[[float, int], float]) -> Bars | None:
    timed = [row for row in rows if row.latest and row.latest.progress.training_seconds > 0]
    shown = timed[:MOST_BARS]
    names = varying(shown) or ["model"]
    progress = [row.latest.progress for row in shown if row.latest]
    values = tuple(number(one.training_seconds, one.tokens_seen) for one in progress)
    labels = tuple(_label(row, names) for row in shown)
    return Bars(_legend(names), labels, values, len(timed) - len(shown)) if timed else None
