"""Columns of a report: those of the table, and any column of results.csv."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from raylm.report.labels import format_field_name, format_field_value, is_number
from raylm.report.select.rows import Record, collect_values, list_names, resolve_column
from raylm.report.tables.columns import Column
from raylm.report.tables.groups import MISSING, format_mean_interval
from raylm.report.tables.table import Table

MAX_DIGITS = 4
"""Maximum number of digits after the point of a value that is not in the table."""


def select_columns(table: Table, names: Sequence[str], records: Mapping[str, Record]) -> Table:
    """Return the table with these columns, in this order; no names: with its own.

    A column that is not in the table is one of results.csv; numbers of seeds are averaged.

    Args:
        table: table of the rows.
        names: names of columns.
        records: values of each row by trial id.

    Raises:
        UserError: if a column does not exist.
    """
    if not names or not table.rows:
        return table
    own = [column.key for column in table.columns]
    keys = [
        resolve_column(name, list(dict.fromkeys([*own, *list_names(records.values())])), "--columns") for name in names
    ]
    columns, cells = [], []
    for key in keys:
        if key in own:
            columns.append(table.columns[own.index(key)])
            cells.append([row[own.index(key)] for row in table.rows])
        else:
            columns.append(Column(format_field_name(key), _is_numeric(records, key), key))
            cells.append([format_values(collect_values(group, records, key)) for group in table.groups])
    return dataclasses.replace(table, columns=tuple(columns), rows=[list(row) for row in zip(*cells, strict=True)])


def select_record_columns(records: list[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return records with these columns only, in this order; no names: with all.

    Raises:
        UserError: if a column does not exist.
    """
    if not names or not records:
        return records
    keys = [resolve_column(name, list_names(records), "--columns") for name in names]
    return [{key: record.get(key) for key in keys} for record in records]


def format_values(values: Sequence[Any]) -> str:
    """Return the values of a line's seeds: one if they are equal, the mean and interval of numbers, else all."""
    if not values:
        return MISSING
    if all(value == values[0] for value in values):
        return _format_value(values[0])
    if all(map(is_number, values)):
        return format_mean_interval(values, _count_digits(statistics.fmean(values)))
    return ", ".join(dict.fromkeys(map(_format_value, values)))


def _format_value(value: Any) -> str:
    if isinstance(value, float) and 0.01 <= abs(value) < 1e6:
        return f"{value:.{_count_digits(value)}f}"
    return format_field_value(value) if isinstance(value, float | bool) else str(value)


def _count_digits(value: float) -> int:
    """Return the digits after the point that give about four significant ones."""
    return 0 if value == 0 else min(MAX_DIGITS, max(0, 2 - math.floor(math.log10(abs(value)))))


def _is_numeric(records: Mapping[str, Record], name: str) -> bool:
    values = [record.get(name) for record in records.values()]
    return all(value is None or is_number(value) for value in values)
