"""Rows of a figure: which are compared, by which loss, and which of them share a panel or a line."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from raylm.config.catalog import MODELS
from raylm.report.figures.panels import MAX_LINES
from raylm.report.labels import find_varying_fields, format_field_value, is_number
from raylm.report.tables.groups import student_t_quantile
from raylm.results.measures import ADJ_VAL_LOSS, NATS_PER_BYTE, VAL_LOSS
from raylm.results.rows import DONE, Row, SweepRows

Line = list[Row]
"""Rows of one line: one row for a curve, several for a series."""
ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class LineGroup:
    """Lines of one dataset, or of one model of it."""

    title: str
    names: list[str]
    """Fields that distinguish the lines."""
    lines: list[Line]


def split_into_panels(lines: Sequence[Line], rows: Iterable[Row], *exclude: str) -> list[LineGroup]:
    """Split lines by dataset, and by model where a dataset has more than `MAX_LINES`.

    A panel that still has more keeps those with the lowest val loss.

    Args:
        lines: lines to draw.
        rows: all rows of the sweep; a line is labelled with the fields that differ among them.
        exclude: fields to leave out of the labels.
    """
    panels, rows = [], list(rows)
    for of_dataset in group_by(lines, lambda line: line[0].config.dataset):
        has_models = "model" not in exclude
        is_crowded = len(of_dataset) > MAX_LINES and has_models
        for panel in group_by(of_dataset, lambda line: line[0].config.model) if is_crowded else [of_dataset]:
            config = panel[0][0].config
            is_one_model = has_models and all(line[0].config.model == config.model for line in panel)
            common = ("dataset", "model") if is_one_model else ("dataset",)
            title = ", ".join(format_field_value(getattr(config, name)) for name in common)
            shown = sorted(sorted(panel, key=_lowest_val_loss)[:MAX_LINES], key=panel.index)
            same_dataset = (row for row in rows if row.config.dataset == config.dataset)
            names = find_varying_fields(same_dataset, *common, *exclude)
            title += "" if shown == panel else f": best {MAX_LINES} of {len(panel)}"
            panels.append(LineGroup(title, names, shown))
    return panels


def group_by(items: Iterable[ItemT], key: Callable[[ItemT], Any]) -> list[list[ItemT]]:
    """Return items with equal keys as one list, in the order of their first."""
    groups: dict[Any, list[ItemT]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def group_without(rows: Iterable[Row], *names: str) -> list[list[Row]]:
    """Return rows that are equal in all fields but these as one list."""
    return group_by(rows, lambda row: row.config.key_without(*names))


def _lowest_val_loss(line: Line) -> float:
    return min(row.metrics.val_loss if row.metrics else math.inf for row in line)


def ranked_rows(results: SweepRows) -> list[Row]:
    """Return the rows that are done, have finite losses, and have a loss that compares with the others'."""
    rows = [row for row in results.rows if row.status == DONE and row.metrics is not None and row.metrics.is_finite]
    return [row for row in rows if results.ranked_loss(row) is not None]


@dataclass(frozen=True)
class Loss:
    """Loss that figures compare rows of a dataset by."""

    name: str
    """One of `measures.MEASURES`."""
    results: SweepRows

    def of(self, row: Row) -> float:
        """Return the loss of a ranked row, in nats."""
        assert row.metrics is not None
        return row.metrics.val_loss if self.name == VAL_LOSS else self.results.ranked_loss(row) or 0.0

    def summarize(self, rows: Sequence[Row]) -> tuple[float, float]:
        """Return the mean loss of seeds, and half the width of its 95 % confidence interval; 0 for one seed."""
        losses = [self.of(row) for row in rows]
        if len(losses) == 1:
            return losses[0], 0.0
        half = student_t_quantile(len(losses) - 1) * statistics.stdev(losses) / math.sqrt(len(losses))
        return statistics.fmean(losses), half


def choose_loss(results: SweepRows, dataset: str) -> Loss:
    """Return val loss where it compares the rows of a dataset, else nats per byte or per word.

    Results of versions that recorded no bytes are ranked by word; for them, models with short names share a tokenizer.
    """
    name = results.measures[dataset].name
    models = {row.config.model for row in ranked_rows(results) if row.config.dataset == dataset}
    if name == ADJ_VAL_LOSS and (len(models) == 1 or models <= set(MODELS)):
        return Loss(VAL_LOSS, results)
    return Loss(name, results)


def describe_loss(name: str) -> str:
    """Return the name of a loss with its unit."""
    units = {VAL_LOSS: " (nats per token)", ADJ_VAL_LOSS: " (nats per word)", NATS_PER_BYTE: ""}
    return f"{'val loss, ' if name == NATS_PER_BYTE else ''}{name}{units[name]}"


def sort_values(name: str, values: Iterable[Any]) -> list[Any]:
    """Return the different values of a field: models by size, other texts as they come, then numbers ascending."""
    different = list(dict.fromkeys(values))
    if name == "model":
        order = [*MODELS, *different]
        return sorted(different, key=order.index)
    numbers = [value for value in different if is_number(value)]
    return [*(value for value in different if not is_number(value)), *sorted(numbers)]
