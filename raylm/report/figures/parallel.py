"""Parallel coordinates: each done trial as a line through its values to its loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from raylm.report.figures.grouping import choose_loss, ranked_rows
from raylm.report.figures.panels import Axis, ParallelPanel
from raylm.report.labels import find_varying_fields, format_field_name, format_field_value
from raylm.results.rows import SweepRows

MAX_CATEGORIES = 8
"""Maximum number of different values of an axis with evenly spaced values; above it, numbers are drawn to scale."""
NUM_INTERVALS = 4
"""Intervals between the ticks of a numeric axis."""


def build_parallel_panels(results: SweepRows) -> tuple[ParallelPanel, ...]:
    """Return a panel for each dataset whose ranked rows differ in a field."""
    panels, compared = [], ranked_rows(results)
    for dataset in results.measures:
        ranked = [row for row in compared if row.config.dataset == dataset]
        if names := find_varying_fields(ranked, "dataset"):
            loss = choose_loss(results, dataset)
            losses = [loss.of(row) for row in ranked]
            values = [[getattr(row.config, name) for row in ranked] for name in names]
            axes = [_build_axis(format_field_name(name), column) for name, column in zip(names, values, strict=True)]
            axes += [_build_numeric_axis(loss.name, losses)]
            texts = [[_format_exactly(value) for value in column] for column in [*values, losses]]
            panels.append(
                ParallelPanel(
                    title=format_field_value(dataset),
                    axes=tuple(axis for axis, _ in axes),
                    coordinates=tuple(zip(*(positions for _, positions in axes), strict=True)),
                    values=tuple(zip(*texts, strict=True)),
                    runs=tuple(row.config.run_name for row in ranked),
                )
            )
    return tuple(panels)


def _format_exactly(value: Any) -> str:
    return repr(value) if isinstance(value, float) else "" if value is None else str(value)


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
