"""Bar charts: times, speeds and the importance of fields."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raylm.report.figures.panels import BarChart
from raylm.report.plots.style import (
    COLORS,
    GRAY,
    INK,
    PAGE,
    Layout,
    choose_time_unit,
    mark_trials,
    new_figure,
    style_context,
    wrap,
)

BAR_HEIGHT = 0.2
"""Height per bar, inches."""


def plot_training_time(chart: BarChart, layout: Layout = PAGE) -> Figure:
    """Plot training time in seconds, minutes or hours, depending on the longest."""
    unit, size = choose_time_unit(max(chart.values))
    values = [value / size for value in chart.values]
    return _plot_bar_chart(chart, layout, "Training time of each trial", f"training time ({unit})", values)


def plot_tokens_per_second(chart: BarChart, layout: Layout = PAGE) -> Figure:
    """Plot training tokens per second of training time."""
    alt_text = "Training tokens per second of each trial"
    return _plot_bar_chart(chart, layout, alt_text, "training tokens per second", chart.values)


def plot_importances(chart: BarChart, dataset: str, layout: Layout = PAGE) -> Figure:
    """Plot the importance of fields for the val loss on a dataset, in percent."""
    return _plot_bar_chart(chart, layout, f"Importance of each field, {dataset}", "share (%)", chart.values)


def _plot_bar_chart(chart: BarChart, layout: Layout, alt_text: str, xlabel: str, values: Sequence[float]) -> Figure:
    with style_context(layout):
        limit, width = layout.max_bar_label_chars, layout.width
        if layout is not PAGE and max(map(len, chart.labels)) > limit:
            limit, width = int(2.5 * limit), layout.wide_width
        figure, axes = new_figure(alt_text, width, 0.9 + BAR_HEIGHT * len(values))
        digits = max(0, 2 - math.floor(math.log10(max(values))))
        bars = axes.barh(range(len(values)), values, height=0.62, color=COLORS[0])
        for number, (bar, run) in enumerate(zip(bars, chart.runs, strict=False)):
            mark_trials(bar, number, [[run]])
        axes.bar_label(bars, [f"{value:,.{digits}f}" for value in values], padding=3)
        labels = [text if len(text) <= limit else text[: limit - 1] + "…" for text in chart.labels]
        axes.set_yticks(range(len(values)), labels, color=INK, fontsize=layout.small_font_size)
        axes.set(ylim=(len(values) - 0.4, -0.6), xlim=(0, max(values) * 1.22), xlabel=xlabel)
        title = wrap(chart.legend, layout)
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=layout.small_font_size, color=GRAY)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5 if layout is PAGE else 4))
        axes.xaxis.set_major_formatter("{x:,g}")
        return figure
