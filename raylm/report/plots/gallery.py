"""Gallery: every figure of a sweep in one order, for the page, for files and for notebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from raylm.report.figures.build import build_figures
from raylm.report.figures.panels import BarChart, Figures, Panel
from raylm.report.importance import compute_importances
from raylm.report.labels import format_field_name
from raylm.report.plots.bars import plot_importances, plot_tokens_per_second, plot_training_time
from raylm.report.plots.lines import plot_field, plot_loss_curves, plot_tradeoff
from raylm.report.plots.maps import plot_heat_map, plot_parallel_coordinates
from raylm.report.plots.style import PAGE, Layout
from raylm.results.rows import SweepRows


@dataclass(frozen=True)
class DrawnPanel:
    """Panel with its drawing."""

    title: str
    data: Panel
    plot: Callable[..., Figure]
    """Function of `layout` that draws the panel."""

    def draw(self, layout: Layout = PAGE) -> Figure:
        """Return the drawing."""
        return self.plot(layout=layout)


@dataclass(frozen=True)
class Exhibit:
    """Figure of one or more panels."""

    name: str
    """Name of its files, such as `val-loss-by-learning-rate`."""
    title: str
    caption: str
    panels: tuple[DrawnPanel, ...]


def build_gallery(results: SweepRows) -> list[Exhibit]:
    """Return the figures of a sweep that have data; the importance of fields for searches only."""
    is_search = results.record is not None and results.record.search is not None
    return list_exhibits(build_figures(results), compute_importances(results) if is_search else [])


def list_exhibits(data: Figures, importances: Sequence[tuple[str, BarChart]] = ()) -> list[Exhibit]:
    """Return the figures that have data.

    Args:
        data: data of the figures.
        importances: name of each dataset with the importance of its fields.
    """
    exhibits = [
        _exhibit(
            "loss-curves",
            "Loss curves",
            "Lines: training loss, a mean between points. Markers: val loss, at 0 that before fine-tuning. Training "
            "loss is measured before each step.",
            [(panel.title, panel, partial(plot_loss_curves, panel)) for panel in data.curves],
        ),
        *_field_exhibits(data),
        _exhibit(
            "heat-map",
            "Val loss of two fields",
            "Each cell is the lowest val loss of its trials, a mean over seeds; the lowest of all is bold.",
            [
                (f"{panel.row_field} {panel.column_field} {panel.title}", panel, partial(plot_heat_map, panel))
                for panel in data.heat_maps
            ],
        ),
        _exhibit(
            "parallel-coordinates",
            "Parallel coordinates",
            "Each line is a done trial: the values of all fields that differ, and its val loss; stronger is lower.",
            [(panel.title, panel, partial(plot_parallel_coordinates, panel)) for panel in data.parallel_coordinates],
        ),
        *(
            _exhibit(
                f"val-loss-against-{name.replace(' ', '-')}",
                f"Val loss against {name}",
                f"Each point is a done trial. No trial below the gray line has both a lower loss and {less}.",
                [(panel.title, panel, partial(plot_tradeoff, panel)) for panel in panels],
            )
            for name, less, panels in (
                ("training time", "less training time", data.by_training_time),
                ("parameters", "fewer parameters", data.by_parameters),
            )
        ),
        _exhibit(
            "importance",
            "Importance",
            "Share of the variance of the val losses that a field explains (PED-ANOVA, done trials only).",
            [(dataset, chart, partial(plot_importances, chart, dataset)) for dataset, chart in importances],
        ),
        _time_exhibit(data),
    ]
    return [exhibit for exhibit in exhibits if exhibit.panels]


def _exhibit(
    name: str, title: str, caption: str, panels: Sequence[tuple[str, Panel, Callable[..., Figure]]]
) -> Exhibit:
    """Return a figure from the title, data and drawing of each panel."""
    return Exhibit(name, title, caption, tuple(DrawnPanel(*panel) for panel in panels))


def _field_exhibits(data: Figures) -> Iterator[Exhibit]:
    """Yield a figure for each field that varies."""
    for field in dict.fromkeys(panel.field for panel in data.by_field):
        panels, name = data.select_field(field), format_field_name(field)
        joined = "Trials on a line are equal in all other fields." if any(p.is_joined for p in panels) else ""
        points = "Each point is a done trial; other fields differ too." if not all(p.is_joined for p in panels) else ""
        has_seeds = any(any(series.intervals) for panel in panels for series in panel.series)
        seeds = "Bars: 95 % confidence interval of the mean over seeds." if has_seeds else ""
        yield _exhibit(
            f"val-loss-by-{field.replace('_', '-')}",
            f"Val loss by {name}",
            " ".join(filter(None, [joined, points, seeds])),
            [(panel.title, panel, partial(plot_field, panel)) for panel in panels],
        )


def _time_exhibit(data: Figures) -> Exhibit:
    """Return the figure of times and speeds."""
    omitted = data.training_seconds.num_omitted if data.training_seconds else 0
    caption = "Time in optimizer steps, without evaluations and checkpoints."
    charts = (
        ("training time", data.training_seconds, plot_training_time),
        ("tokens per second", data.tokens_per_second, plot_tokens_per_second),
    )
    return _exhibit(
        "speed",
        "Time and speed",
        caption + (f" {omitted:,} more trials are in results.csv." if omitted else ""),
        [(title, chart, partial(plot, chart)) for title, chart, plot in charts if chart],
    )
