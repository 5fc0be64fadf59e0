"""Loss over each field that varies: lines of trials equal in all other fields, or a point per trial of a search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raylm.report.figures.grouping import (
    Line,
    LineGroup,
    Loss,
    choose_loss,
    group_by,
    group_without,
    ranked_rows,
    sort_values,
    split_into_panels,
)
from raylm.report.figures.panels import CATEGORIES, LINEAR, LOG, LOG2, FieldPanel, Series
from raylm.report.labels import find_varying_fields, format_field_value, format_label, format_legend, is_number
from raylm.results.rows import Row, SweepRows

POWERS_OF_TWO_FIELDS = ("context_length", "batch_size")
"""Fields whose usual values are powers of two."""
LOG_FIELDS = ("learning_rate", "max_train_tokens", "max_documents")
"""Fields whose usual values span decades."""
FRACTION_FIELDS = ("warmup_ratio", "dropout")
"""Fields whose axis is never logarithmic."""


def build_field_panels(results: SweepRows) -> tuple[FieldPanel, ...]:
    """Return panels of the loss over each field that varies among the ranked rows of a dataset.

    Rows that differ in their seed only are one point, at their mean.
    """
    ranked = ranked_rows(results)
    by_dataset = group_by(ranked, lambda row: row.config.dataset)
    varying = [find_varying_fields(rows, "dataset", "seed") for rows in by_dataset]
    names = [name for name in find_varying_fields(ranked, "dataset", "seed") if any(name in own for own in varying)]
    panels: list[FieldPanel] = []
    for name in names:
        for rows, own in zip(by_dataset, varying, strict=True):
            panels += _build_panels(name, rows, results) if name in own else []
    return tuple(panels)


def _build_panels(name: str, rows: Sequence[Row], results: SweepRows) -> list[FieldPanel]:
    """Return the panels of a field for the rows of a dataset."""
    groups = group_without(rows, name, "seed")
    lines = [group for group in groups if len({getattr(row.config, name) for row in group}) > 1]
    is_joined = 2 * sum(map(len, lines)) >= len(rows)
    if is_joined:
        panels = split_into_panels(lines, results.rows, name, "seed")
    else:
        by_model = group_by(rows, lambda row: row.config.model if name != "model" else "")
        exclude = [other for other in find_varying_fields(rows) if other != "model" or name == "model"]
        panels = split_into_panels(by_model, rows, *exclude)
    loss = choose_loss(results, rows[0].config.dataset)
    return [_build_panel(name, panel, rows, loss, is_joined) for panel in panels]


def _build_panel(name: str, panel: LineGroup, rows: Sequence[Row], loss: Loss, is_joined: bool) -> FieldPanel:
    """Return a panel, with an axis that fits all rows of the dataset."""
    values = sort_values(name, (getattr(row.config, name) for row in rows))
    scale = choose_scale(name, values)
    shown = values if scale != CATEGORIES else sort_values(name, (_value(row, name) for x in panel.lines for row in x))
    return FieldPanel(
        title=panel.title,
        legend=format_legend(panel.names),
        field=name,
        series=tuple(_build_series(name, line, panel.names, loss, shown, scale) for line in panel.lines),
        scale=scale,
        categories=tuple(map(format_field_value, shown)) if scale == CATEGORIES else (),
        is_joined=is_joined,
        loss_name=loss.name,
    )


def _build_series(
    name: str, line: Line, label_names: Sequence[str], loss: Loss, values: Sequence[Any], scale: str
) -> Series:
    """Return a line; rows that differ in their seed only are one point."""
    points = []
    for rows in group_without(line, "seed"):
        value = _value(rows[0], name)
        mean, interval = loss.summarize(rows)
        x = values.index(value) if scale == CATEGORIES else value
        points.append((x, mean, interval, tuple(row.config.run_name for row in rows)))
    points.sort(key=lambda point: point[:2])
    return Series(
        label=format_label(line[0], label_names),
        points=tuple((x, mean) for x, mean, _, _ in points),
        intervals=tuple(interval for _, _, interval, _ in points),
        runs=tuple(runs for *_, runs in points),
    )


def _value(row: Row, name: str) -> Any:
    return getattr(row.config, name)


def choose_scale(name: str, values: Sequence[Any]) -> str:
    """Return the scale of an axis with these values of a field."""
    if not all(map(is_number, values)):
        return CATEGORIES
    low, high = min(values), max(values)
    if low > 0 and name in POWERS_OF_TWO_FIELDS:
        return LOG2
    is_wide = high >= 10 * low and name not in FRACTION_FIELDS
    return LOG if low > 0 and (name in LOG_FIELDS or is_wide) else LINEAR
