"""Plots of the report's panels: deterministic, for odd names and constant losses, with alternative texts."""

from __future__ import annotations

from dataclasses import replace

from sample_rows import FOLDER, sample_row

from raylm.report.figures.build import build_figures
from raylm.report.figures.panels import BarChart
from raylm.report.plots import bars, lines, maps, style
from raylm.results.rows import SweepRows
from raylm.results.storage import Folder


def test_plots_are_deterministic() -> None:
    model = '$\\frac{<b>&"字'
    rows = [sample_row(3 + c / 512, model=model, context_length=c, batch_size=b) for c in (256, 512) for b in (8, 16)]
    data = build_figures(SweepRows(Folder(FOLDER), rows))
    assert data.training_seconds is not None and data.tokens_per_second is not None

    def render() -> list[str]:
        assert data.training_seconds is not None and data.tokens_per_second is not None
        panels = [
            lines.plot_loss_curves(data.curves[0]),
            lines.plot_field(data.by_field[0]),
            lines.plot_field(data.by_field[1]),
            maps.plot_parallel_coordinates(data.parallel_coordinates[0]),
            bars.plot_training_time(data.training_seconds),
            bars.plot_tokens_per_second(data.tokens_per_second),
        ]
        return [style.to_svg(panel) for panel in panels]

    first = render()
    assert first == render() and all(svg.startswith("<svg") and "<dc:date>" not in svg for svg in first)


def test_panel_with_a_constant_loss_is_plotted() -> None:
    (panel,) = build_figures(SweepRows(Folder(FOLDER), [sample_row(2.0)])).curves
    flat = replace(panel, loss_range=(2.0, 2.0))
    assert style.to_svg(lines.plot_loss_curves(flat)).rstrip().endswith("</svg>")


def test_plot_has_an_alternative_text() -> None:
    data = build_figures(SweepRows(Folder(FOLDER), [sample_row(2.0)]))
    assert data.training_seconds is not None
    figures = [
        lines.plot_loss_curves(data.curves[0]),
        bars.plot_training_time(data.training_seconds),
        bars.plot_importances(BarChart("", ("seed",), (100.0,)), "imdb"),
    ]
    assert [style.get_alt_text(figure) for figure in figures] == [
        "Loss curves, pydocs, gpt2-nano",
        "Training time of each trial",
        "Importance of each field, imdb",
    ]
