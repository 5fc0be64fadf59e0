"""Heat maps: the loss over two fields whose values form a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from raylm.report.figures.grouping import Loss, choose_loss, group_by, group_without, ranked_rows, sort_values
from raylm.report.figures.panels import HeatMap
from raylm.report.labels import find_varying_fields, format_field_name, format_field_value
from raylm.results.rows import Row, SweepRows

MAX_VALUES = 12
"""Maximum number of values of a field in a heat map."""
MAX_MAPS = 6
"""Maximum number of heat maps of a dataset."""
MIN_CELLS = 3
"""Minimum number of cells with a loss."""


def build_heat_maps(results: SweepRows) -> tuple[HeatMap, ...]:
    """Return a heat map for each pair of fields whose values form a grid.

    In a grid, other fields have the same values in each cell. A cell has the lowest loss of its trials, which differ
    in these; seeds are averaged before. Of more than `MAX_MAPS` pairs of a dataset, those with the most cells are kept.
    """
    maps: list[HeatMap] = []
    ranked = {row.config.id for row in ranked_rows(results)}
    for rows in group_by(results.rows, lambda row: row.config.dataset):
        loss = choose_loss(results, rows[0].config.dataset)
        names = find_varying_fields(rows, "dataset", "seed")
        built = [_build_map(rows, pair, loss, ranked) for pair in itertools.combinations(names, 2)]
        complete = [heat_map for heat_map in built if heat_map is not None]
        kept = sorted(complete, key=lambda heat_map: -len(heat_map.row_labels) * len(heat_map.column_labels))
        maps += sorted(kept[:MAX_MAPS], key=complete.index)
    return tuple(maps)


def _build_map(rows: Sequence[Row], names: tuple[str, str], loss: Loss, ranked: set[str]) -> HeatMap | None:
    """Return the heat map of two fields; None if they form no grid, or too few cells have a loss."""
    row_name, column_name = names
    row_values, column_values = (sort_values(name, (getattr(row.config, name) for row in rows)) for name in names)
    if max(len(row_values), len(column_values)) > MAX_VALUES:
        return None
    cells: dict[tuple[Any, Any], list[Row]] = {}
    for row in rows:
        cells.setdefault((getattr(row.config, row_name), getattr(row.config, column_name)), []).append(row)
    others = {key: _other_fields(of_cell, *names, "seed") for key, of_cell in cells.items()}
    if len(cells) < len(row_values) * len(column_values) or len(set(others.values())) > 1:
        return None
    found = [[_lowest_loss(cells[r, c], loss, ranked) for c in column_values] for r in row_values]
    if sum(value is not None for line in found for value in line) < MIN_CELLS:
        return None
    config = rows[0].config
    return HeatMap(
        title=format_field_value(config.dataset),
        row_field=format_field_name(row_name),
        column_field=format_field_name(column_name),
        row_labels=tuple(map(format_field_value, row_values)),
        column_labels=tuple(map(format_field_value, column_values)),
        losses=tuple(map(tuple, found)),
        remarks=tuple(
            tuple(
                "" if value is not None else cells[r, c][0].status for c, value in zip(column_values, line, strict=True)
            )
            for r, line in zip(row_values, found, strict=True)
        ),
        num_trials=len(next(iter(others.values()))),
        loss_name=loss.name,
    )


def _lowest_loss(rows: Sequence[Row], loss: Loss, ranked: set[str]) -> float | None:
    """Return the lowest mean over seeds, or None without a ranked row."""
    compared = [row for row in rows if row.config.id in ranked]
    return min((loss.summarize(group)[0] for group in group_without(compared, "seed")), default=None)


def _other_fields(rows: Sequence[Row], *names: str) -> frozenset[tuple[Any, ...]]:
    """Return the different values of all fields but these."""
    return frozenset(row.config.key_without(*names) for row in rows)
