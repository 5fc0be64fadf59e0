"""Bars of training time and speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raylm.report.figures.panels import MAX_BARS, BarChart
from raylm.report.labels import find_varying_fields, format_label, format_legend
from raylm.results.rows import Row


def build_bar_chart(rows: Sequence[Row], value_fn: Callable[[float, int], float]) -> BarChart | None:
    """Return a bar for each trial that was timed.

    Args:
        rows: all rows of the sweep.
        value_fn: function of training seconds and training tokens that gives the length of a bar.
    """
    timed = [row for row in rows if row.latest_checkpoint and row.latest_checkpoint.progress.training_seconds > 0]
    if not timed:
        return None
    shown = timed[:MAX_BARS]
    names = find_varying_fields(shown) or ["model"]
    progresses = [row.latest_checkpoint.progress for row in shown if row.latest_checkpoint]
    values = tuple(value_fn(progress.training_seconds, progress.tokens_seen) for progress in progresses)
    labels = tuple(format_label(row, names) for row in shown)
    runs = tuple(row.config.run_name for row in shown)
    return BarChart(format_legend(names), labels, values, len(timed) - len(shown), runs)
