"""Data behind a panel as CSV: one line per point, numbers in full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any

from raylm.report.figures.panels import (
    CATEGORIES,
    BarChart,
    CurvesPanel,
    FieldPanel,
    HeatMap,
    Panel,
    ParallelPanel,
    TradeoffPanel,
)

Lines = tuple[Sequence[str], Iterable[Sequence[Any]]]
"""Column names, and a sequence of values for each line."""


def format_panel_csv(panel: Panel) -> str:
    """Return the data of a panel as CSV."""
    names, lines = _list_lines(panel)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([names, *lines])
    return out.getvalue()


@singledispatch
def _list_lines(panel: Panel) -> Lines:
    """Return the columns and lines of a panel."""
    raise TypeError(type(panel))


@_list_lines.register
def _(panel: CurvesPanel) -> Lines:
    lines = [
        (curve.run, curve.label, name, epochs, loss)
        for curve in panel.curves
        for name, points in (("train loss", curve.train), ("val loss", curve.val))
        for epochs, loss in points
    ]
    return ("run", panel.legend or "label", "loss", "epochs", "nats per token"), lines


@_list_lines.register
def _(panel: FieldPanel) -> Lines:
    lines = []
    for series in panel.series:
        for (x, loss), interval, runs in zip(series.points, series.intervals, series.runs, strict=True):
            value = panel.categories[int(x)] if panel.scale == CATEGORIES else x
            lines.append((series.label, value, loss, interval if len(runs) > 1 else "", len(runs), " ".join(runs)))
    return (panel.legend or "label", panel.field, panel.loss_name, "half 95% interval", "seeds", "runs"), lines


@_list_lines.register
def _(panel: HeatMap) -> Lines:
    lines = [
        (row_label, column_label, "" if loss is None else loss, remark)
        for row_label, losses, remarks in zip(panel.row_labels, panel.losses, panel.remarks, strict=True)
        for column_label, loss, remark in zip(panel.column_labels, losses, remarks, strict=True)
    ]
    return (panel.row_field, panel.column_field, panel.loss_name, "status"), lines


@_list_lines.register
def _(panel: TradeoffPanel) -> Lines:
    unit = "training seconds" if panel.cost == "training time" else panel.cost
    lines = [
        (run, series.label, *point, point in panel.front)
        for series in panel.series
        for point, (run,) in zip(series.points, series.runs, strict=True)
    ]
    return ("run", panel.legend or "label", unit, panel.loss_name, "on front"), lines


@_list_lines.register
def _(panel: ParallelPanel) -> Lines:
    lines = [(run, *values) for run, values in zip(panel.runs, panel.values, strict=True)]
    return ("run", *(axis.name for axis in panel.axes)), lines


@_list_lines.register
def _(panel: BarChart) -> Lines:
    if panel.runs:
        lines: list[Sequence[Any]] = list(zip(panel.runs, panel.labels, panel.values, strict=True))
        return ("run", panel.legend or "label", "value"), lines
    return ("field", "share (%)"), list(zip(panel.labels, panel.values, strict=True))
