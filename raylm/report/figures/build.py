"""All figures of a sweep."""

from __future__ import annotations

from raylm.report.figures.bars import build_bar_chart
from raylm.report.figures.curves import build_curve_panels
from raylm.report.figures.fields import build_field_panels
from raylm.report.figures.grids import build_heat_maps
from raylm.report.figures.panels import Figures
from raylm.report.figures.parallel import build_parallel_panels
from raylm.report.figures.tradeoffs import build_tradeoff_panels
from raylm.results.rows import SweepRows


def build_figures(results: SweepRows) -> Figures:
    """Return the figures of a sweep with rows of any status."""
    by_time, by_parameters = build_tradeoff_panels(results)
    return Figures(
        curves=build_curve_panels(results.rows),
        by_field=build_field_panels(results),
        heat_maps=build_heat_maps(results),
        parallel_coordinates=build_parallel_panels(results),
        by_training_time=by_time,
        by_parameters=by_parameters,
        training_seconds=build_bar_chart(results.rows, lambda seconds, tokens: seconds),
        tokens_per_second=build_bar_chart(results.rows, lambda seconds, tokens: tokens / seconds),
    )
