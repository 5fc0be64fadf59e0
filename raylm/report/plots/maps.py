"""Plots of several fields at once: heat maps and parallel coordinates."""

from __future__ import annotations

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from raylm.report.figures.grouping import describe_loss
from raylm.report.figures.panels import HeatMap, ParallelPanel
from raylm.report.plots.style import (
    GRAY,
    INK,
    PAGE,
    PAPER_COLOR,
    Layout,
    mark_axis,
    mark_trials,
    new_figure,
    style_context,
    wrap,
)

MAX_NARROW_AXES = 4
"""Maximum number of parallel axes in a plot of the usual width."""
MAX_NARROW_COLUMNS = 6
"""Maximum number of columns of a heat map of the usual width."""
CELL_HEIGHT = 0.26
"""Height of a row of a heat map, inches."""
COLOR_MAP, LIGHTEST = "cividis", 1.25
"""Colors of losses from low (dark) to high, and the end of their scale: the lightest yellows are hard to see."""
MAX_DARK = 0.55
"""Maximum position on the color scale with white text."""


def plot_heat_map(panel: HeatMap, layout: Layout = PAGE) -> Figure:
    """Plot the losses of a grid as colored cells with their numbers; lower is darker, the lowest is bold."""
    with style_context(layout):
        num_rows, num_columns = len(panel.row_labels), len(panel.column_labels)
        width = layout.width if num_columns <= MAX_NARROW_COLUMNS else layout.wide_width
        alt_text = f"Val loss by {panel.row_field} and {panel.column_field}, {panel.title}"
        figure, axes = new_figure(alt_text, width, 0.95 + CELL_HEIGHT * num_rows)
        known = [loss for losses in panel.losses for loss in losses if loss is not None]
        low, high = min(known), max(known)
        colors, span = ScalarMappable(Normalize(0, LIGHTEST), COLOR_MAP), (high - low) or 1.0
        for row, (losses, remarks) in enumerate(zip(panel.losses, panel.remarks, strict=True)):
            for column, (loss, remark) in enumerate(zip(losses, remarks, strict=True)):
                position = None if loss is None else (loss - low) / span
                color = "#eeeeee" if position is None else colors.to_rgba(position)  # type: ignore[arg-type]
                axes.fill_between([column, column + 1], row, row + 1, color=color, linewidth=0)
                axes.text(
                    column + 0.5,
                    row + 0.5,
                    remark if loss is None else f"{loss:.3f}",
                    ha="center",
                    va="center",
                    color="white" if position is not None and position <= MAX_DARK else "black",
                    fontsize=layout.small_font_size,
                    fontweight="bold" if loss == low else "normal",
                )
        axes.set_xticks([column + 0.5 for column in range(num_columns)], panel.column_labels, color=INK)
        axes.set_yticks([row + 0.5 for row in range(num_rows)], panel.row_labels, color=INK)
        lowest = f", lowest of {panel.num_trials} trials" if panel.num_trials > 1 else ""
        title = wrap(f"{panel.title}: {describe_loss(panel.loss_name)}{lowest}", layout)
        figure.suptitle(title, fontsize=layout.font_size + 0.5)
        axes.set(
            xlabel=panel.column_field,
            ylabel=panel.row_field,
            xlim=(0, num_columns),
            ylim=(0, num_rows),
        )
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(False)
        return figure


def plot_parallel_coordinates(panel: ParallelPanel, layout: Layout = PAGE) -> Figure:
    """Plot each trial as a line through its values to its val loss; lower is darker and in front."""
    with style_context(layout):
        width = layout.width if len(panel.axes) <= MAX_NARROW_AXES else layout.wide_width
        figure, axes = new_figure(f"Parallel coordinates, {panel.title}", width, layout.height)
        colors = ScalarMappable(Normalize(0, LIGHTEST), COLOR_MAP)
        lines = zip(panel.coordinates, panel.runs, strict=True)
        for number, (line, run) in enumerate(sorted(lines, key=lambda pair: -pair[0][-1])):
            color = colors.to_rgba(line[-1])  # type: ignore[arg-type]
            (artist,) = axes.plot(range(len(line)), line, color=color, linewidth=1.3)
            mark_trials(artist, number, [[run]])
        for position, axis in enumerate(panel.axes):
            mark_axis(axes.axvline(position, color=GRAY, linewidth=0.7), position)
            for height, label in axis.ticks:
                axes.annotate(
                    label,
                    (position, height),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=layout.small_font_size - 0.5,
                    bbox={"facecolor": PAPER_COLOR, "edgecolor": "none", "alpha": 0.9, "pad": 0.6},
                )
        names = [axis.name for axis in panel.axes]
        loss = describe_loss(panel.axes[-1].name).replace(" (", "\n(")
        axes.set_xticks(range(len(names)), [*names[:-1], loss], color=INK)
        axes.set(title=wrap(panel.title, layout), yticks=[], xlim=(-0.1, len(names) - 0.6), ylim=(-0.06, 1.06))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(False)
        return figure
