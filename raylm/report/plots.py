"""Plots of the report's panels with matplotlib, independent of the user's settings, and their SVG.

Colors are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which color-blind people can distinguish; line
styles and markers differ too, for print in black and white. Text is drawn as paths and needs no font.
"""

from __future__ import annotations

import base64
import contextlib
import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raylm.report.figures import BarChart, CurvesPanel, ParallelPanel, SeriesPanel

# without yellow, which is hard to see on white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
LINE_STYLES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), "-")
MARKERS = ("o", "s", "^", "D", "v", "X")
GRAY = "#555555"

WIDTH = 4.6
"""Inches. Two plots fit side by side on a desktop and on paper, one on a phone."""
HEIGHT = 2.9
"""Height of a plot without its legend, inches."""
LEGEND_ROW_HEIGHT = 0.17
"""Height of a row of the legend, inches."""
BAR_ROW_HEIGHT = 0.2
"""Height per bar, inches."""
MAX_LINE_CHARS = 56
"""Maximum length of a line of text in a plot of `WIDTH`."""
MAX_BAR_LABEL_CHARS = 38
"""Maximum length of a bar's label."""
MAX_NARROW_AXES = 4
"""Maximum number of parallel axes in a plot of `WIDTH`; with more it is twice as wide."""

RC_PARAMS: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "raylm",
    "text.parse_math": False,  # names may contain dollars
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRAY,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
}

FIELD_LABELS = {"context_length": "context length (tokens)", "batch_size": "batch size (sequences per step)"}


@contextlib.contextmanager
def _rc_context() -> Iterator[None]:
    """Set matplotlib's defaults with `RC_PARAMS` on top, and restore the user's settings afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # drawn as a box; the table has the name
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC_PARAMS)
        yield


def _new_figure(alt_text: str, width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure, labelled with its alternative text, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.set_label(alt_text)
    return figure, figure.add_subplot()


def get_alt_text(figure: Figure) -> str:
    """Return the alternative text of a plot for people who cannot see it."""
    return str(figure.get_label())


def to_svg(figure: Figure) -> str:
    """Return the SVG of a plot; the same plot gives the same text, without date and random names."""
    out = io.StringIO()
    with _rc_context():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def to_data_url(figure: Figure) -> str:
    """Return the SVG as a `data:` URL: a separate image, whose ids cannot collide with those of another."""
    return "data:image/svg+xml;base64," + base64.b64encode(to_svg(figure).encode()).decode()


def _add_legend(figure: Figure, axes: Axes, title: str, labels: Sequence[str]) -> None:
    """Add a legend below the axes; the figure grows by its height."""
    if title:
        columns = max(1, min(3, len(labels), 66 // (max(map(len, labels)) + 10)))
        rows = -(-len(labels) // columns) + 1 + _wrap(title).count("\n")
        figure.set_figheight(HEIGHT + rows * LEGEND_ROW_HEIGHT)
        handles, _ = axes.get_legend_handles_labels()
        figure.legend(handles, labels, title=_wrap(title), loc="outside lower center", ncols=columns, handlelength=3)


def plot_loss_curves(panel: CurvesPanel) -> Figure:
    """Plot training loss as lines and val loss as markers on a thin line, over epochs."""
    with _rc_context():
        figure, axes = _new_figure(f"Loss curves, {panel.title}", WIDTH, HEIGHT)
        for number, curve in enumerate(panel.curves):
            color, style, marker = COLORS[number], LINE_STYLES[number], MARKERS[number]
            axes.plot(*_unzip_points(curve.train), color=color, linestyle=style, linewidth=0.9, alpha=0.8)
            axes.plot(*_unzip_points(curve.val), color=color, linewidth=0.5, marker=marker, zorder=3)
            axes.plot([], [], color=color, linestyle=style, marker=marker, label=curve.label)
        low, high = panel.loss_range
        space = 0.04 * (high - low) or 0.1
        axes.set(
            title=_wrap(panel.title),
            xlabel="epochs",
            ylabel="loss (nats per token)",
            ylim=(low - space, high + space),
        )
        axes.set_xlim(left=0)
        _add_legend(figure, axes, panel.legend, [curve.label for curve in panel.curves])
        return figure


def plot_series(panel: SeriesPanel) -> Figure:
    """Plot val loss over a field on a logarithmic axis."""
    with _rc_context():
        name = panel.field.replace("_", " ")
        figure, axes = _new_figure(f"Val loss by {name}, {panel.title}", WIDTH, HEIGHT)
        for number, line in enumerate(panel.series):
            style = {"color": COLORS[number], "marker": MARKERS[number]}
            axes.plot(*_unzip_points(line.points), linestyle=LINE_STYLES[number], label=line.label, **style)  # type: ignore[arg-type]
        values = sorted({x for line in panel.series for x, _ in line.points})
        ticks = values[:: math.ceil(len(values) / 8)]
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
        axes.set_xticks([], minor=True)
        axes.set(title=_wrap(panel.title), xlabel=FIELD_LABELS[panel.field], ylabel="val loss (nats per token)")
        axes.margins(0.08)
        _add_legend(figure, axes, panel.legend, [line.label for line in panel.series])
        return figure


def plot_parallel_coordinates(panel: ParallelPanel) -> Figure:
    """Plot each trial as a line through its values to its val loss; lower is darker and in front."""
    with _rc_context():
        width = WIDTH if len(panel.axes) <= MAX_NARROW_AXES else 2 * WIDTH
        figure, axes = _new_figure(f"Parallel coordinates, {panel.title}", width, HEIGHT)
        colors = ScalarMappable(Normalize(0, 1.25), "cividis")  # its lightest yellows are hard to see
        for line in sorted(panel.coordinates, key=lambda positions: -positions[-1]):
            axes.plot(range(len(line)), line, color=colors.to_rgba(line[-1]), linewidth=1.3)  # type: ignore[arg-type]
        for position, axis in enumerate(panel.axes):
            axes.axvline(position, color=GRAY, linewidth=0.7)
            for height, label in axis.ticks:
                axes.annotate(
                    label,
                    (position, height),
                    (4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7.5,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 0.6},
                )
        names = [axis.name for axis in panel.axes]
        axes.set_xticks(range(len(names)), [*names[:-1], "val loss\n(nats per token)"], color="black")
        axes.set(title=_wrap(panel.title), yticks=[], xlim=(-0.1, len(names) - 0.6), ylim=(-0.06, 1.06))
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(False)
        return figure


def plot_training_time(chart: BarChart) -> Figure:
    """Plot training time in seconds, minutes or hours, depending on the longest."""
    longest = max(chart.values)
    unit, size = ("h", 3600) if longest >= 3 * 3600 else ("min", 60) if longest >= 3 * 60 else ("s", 1)
    return _plot_bar_chart(
        chart, "Training time of each trial", f"training time ({unit})", [value / size for value in chart.values]
    )


def plot_tokens_per_second(chart: BarChart) -> Figure:
    """Plot training tokens per second of training time."""
    return _plot_bar_chart(
        chart, "Training tokens per second of each trial", "training tokens per second", chart.values
    )


def plot_importances(chart: BarChart, dataset: str) -> Figure:
    """Plot the importance of fields for the val loss on a dataset, in percent."""
    return _plot_bar_chart(chart, f"Importance of each field, {dataset}", "share (%)", chart.values)


def _plot_bar_chart(chart: BarChart, alt_text: str, xlabel: str, values: Sequence[float]) -> Figure:
    with _rc_context():
        figure, axes = _new_figure(alt_text, WIDTH, 0.9 + BAR_ROW_HEIGHT * len(values))
        digits = max(0, 2 - math.floor(math.log10(max(values))))
        bars = axes.barh(range(len(values)), values, height=0.62, color=COLORS[0])
        axes.bar_label(bars, [f"{value:,.{digits}f}" for value in values], padding=3)
        labels = [
            text if len(text) <= MAX_BAR_LABEL_CHARS else text[: MAX_BAR_LABEL_CHARS - 1] + "…" for text in chart.labels
        ]
        axes.set_yticks(range(len(values)), labels, color="black", fontsize=8)
        axes.set(ylim=(len(values) - 0.4, -0.6), xlim=(0, max(values) * 1.22), xlabel=xlabel)
        figure.suptitle(_wrap(chart.legend), x=0.01, horizontalalignment="left", fontsize=8, color=GRAY)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter("{x:,g}")
        return figure


def _wrap(text: str) -> str:
    return textwrap.fill(text, MAX_LINE_CHARS)


def _unzip_points(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
