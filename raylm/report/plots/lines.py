"""Plots of losses: over epochs, over a field, and against a cost."""

from __future__ import annotations

import itertools
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from raylm.report.figures.grouping import describe_loss
from raylm.report.figures.panels import CATEGORIES, LINEAR, LOG, LOG2, CurvesPanel, FieldPanel, Points, TradeoffPanel
from raylm.report.plots.style import (
    COLORS,
    GRAY,
    LINE_STYLES,
    MARKERS,
    PAGE,
    Layout,
    add_legend,
    choose_time_unit,
    mark_trials,
    new_figure,
    style_context,
    unzip_points,
    wrap,
)

FIELD_LABELS = {
    "context_length": "context length (tokens)",
    "batch_size": "batch size (sequences per step)",
    "warmup_ratio": "warm-up (fraction of the steps)",
    "max_train_tokens": "training tokens",
    "lr_schedule": "learning rate schedule",
}
"""Labels of axes that are not the field's name alone."""
MAX_TICKS = 8
"""Maximum number of ticks of an axis with a tick at each value."""
MANY_CHARS = 30
"""Characters of all labels of a category axis, per inch of three, above which they are slanted."""


def plot_loss_curves(panel: CurvesPanel, layout: Layout = PAGE) -> Figure:
    """Plot training loss as lines and val loss as markers on a thin line, over epochs."""
    with style_context(layout):
        figure, axes = new_figure(f"Loss curves, {panel.title}", layout.width, layout.height)
        for number, curve in enumerate(panel.curves):
            color, style, marker = COLORS[number], LINE_STYLES[number], MARKERS[number]
            (train,) = axes.plot(*unzip_points(curve.train), color=color, linestyle=style, linewidth=0.9, alpha=0.8)
            (val,) = axes.plot(
                *unzip_points(_part_from_start(curve.val)), color=color, linewidth=0.5, marker=marker, zorder=3
            )
            for artist in (train, val):
                mark_trials(artist, number, [[curve.run]])
            axes.plot([], [], color=color, linestyle=style, marker=marker, label=curve.label)
        low, high = panel.loss_range
        space = 0.04 * (high - low) or 0.1
        axes.set(
            title=wrap(panel.title, layout),
            xlabel="epochs",
            ylabel="loss (nats per token)",
            ylim=(low - space, high + space),
        )
        axes.set_xlim(left=0)
        add_legend(figure, axes, layout, panel.legend, [curve.label for curve in panel.curves])
        return figure


def _part_from_start(val: Points) -> Points:
    """Return val losses with a gap after the one before fine-tuning: no line joins it to the first evaluation."""
    return (val[0], (math.nan, math.nan), *val[1:]) if val and val[0][0] == 0 else val


def plot_field(panel: FieldPanel, layout: Layout = PAGE) -> Figure:
    """Plot the loss over a field; bars are 95 % confidence intervals over seeds."""
    with style_context(layout):
        label = FIELD_LABELS.get(panel.field, panel.field.replace("_", " "))
        alt_text = f"Val loss by {panel.field.replace('_', ' ')}, {panel.title}"
        figure, axes = new_figure(alt_text, layout.width, layout.height)
        for number, line in enumerate(panel.series):
            x, y = unzip_points(line.points)
            style = LINE_STYLES[number] if panel.is_joined else "none"
            artists = axes.errorbar(
                x,
                y,
                yerr=line.intervals if any(line.intervals) else None,
                color=COLORS[number],
                marker=MARKERS[number],
                linestyle=style,
                label=line.label,
                capsize=2,
                elinewidth=0.8,
                alpha=1 if panel.is_joined else 0.75,
            )
            mark_trials(artists.lines[0], number, line.runs)
        _set_scale(axes, panel, layout)
        axes.set(title=wrap(panel.title, layout), xlabel=label, ylabel=describe_loss(panel.loss_name))
        axes.margins(0.08)
        add_legend(figure, axes, layout, panel.legend, [line.label for line in panel.series])
        return figure


def _set_scale(axes: Axes, panel: FieldPanel, layout: Layout) -> None:
    """Set the scale and the ticks of the axis of a field."""
    values = sorted({x for line in panel.series for x, _ in line.points})
    if panel.scale == CATEGORIES:
        is_long = sum(map(len, panel.categories)) > MANY_CHARS * layout.width / 3
        slant = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
        axes.set_xticks(range(len(panel.categories)), panel.categories, **slant)  # type: ignore[arg-type]
        return
    if panel.scale in (LOG, LOG2):
        axes.set_xscale("log", base=2 if panel.scale == LOG2 else 10)
    is_narrow = panel.scale == LOG and max(values) < 100 * min(values)
    if len(values) <= MAX_TICKS and (panel.scale in (LINEAR, LOG2) or is_narrow) and _are_apart(values, panel.scale):
        axes.set_xticks(values, [f"{value:g}" for value in values])
    elif panel.scale == LOG2:
        ticks = values[:: math.ceil(len(values) / MAX_TICKS)]
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    elif panel.scale == LOG:
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 3) if is_narrow else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if panel.scale in (LOG, LOG2):
        axes.xaxis.set_minor_formatter(NullFormatter())
        if panel.scale == LOG2 or is_narrow:
            axes.set_xticks([], minor=True)


def _are_apart(values: list[float], scale: str) -> bool:
    """Return whether ticks at these values have room for their labels: an eighth of the axis."""
    positions = values if scale == LINEAR else [math.log(value) for value in values]
    span = positions[-1] - positions[0]
    return all(right - left >= span / MAX_TICKS for left, right in itertools.pairwise(positions))


def plot_tradeoff(panel: TradeoffPanel, layout: Layout = PAGE) -> Figure:
    """Plot the loss of each trial against its cost on a logarithmic axis, and the Pareto front as steps."""
    with style_context(layout):
        figure, axes = new_figure(f"Val loss against {panel.cost}, {panel.title}", layout.width, layout.height)
        costs = [x for line in panel.series for x, _ in line.points]
        unit, size = choose_time_unit(max(costs)) if panel.cost == "training time" else ("", 1.0)
        front_x, front_y = unzip_points(panel.front)
        steps = [value / size for value in (*front_x, max(costs))]
        axes.step(steps, [*front_y, front_y[-1]], where="post", color=GRAY, linewidth=0.9, zorder=1)
        for number, line in enumerate(panel.series):
            x, y = unzip_points(line.points)
            color, marker = COLORS[number], MARKERS[number]
            scaled = [value / size for value in x]
            (points,) = axes.plot(scaled, y, color=color, marker=marker, linestyle="none", label=line.label, alpha=0.8)
            mark_trials(points, number, line.runs)
        axes.set_xscale("log")
        if max(costs) < 30 * min(costs):
            axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_si(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        title = panel.title + (f"\n{panel.note}" if panel.note else "")
        axes.set(
            title="\n".join(wrap(line, layout) for line in title.splitlines()),
            xlabel=f"{panel.cost} ({unit})" if unit else panel.cost,
            ylabel=describe_loss(panel.loss_name),
        )
        axes.margins(0.08)
        add_legend(figure, axes, layout, panel.legend, [line.label for line in panel.series])
        return figure


def format_si(value: float) -> str:
    """Return a number with k, M or G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
