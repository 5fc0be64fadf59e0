"""Rows of a report: which, in which order, how many."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from raylm.config.other_names import find_field
from raylm.errors import UserError, format_suggestion, safe_repr
from raylm.report.labels import is_number
from raylm.report.tables.columns import REFERENCE_COLUMNS, ZERO_SHOT_COLUMN
from raylm.report.tables.groups import SeedGroup, group_by_seed
from raylm.results.rows import DONE, SweepRows

Record = Mapping[str, Any]
"""Values of a row by column of results.csv."""
RowsT = TypeVar("RowsT", bound=SweepRows)
MAX_SHOWN_VALUES = 12
"""Maximum number of values of a column in a message."""
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
HEADINGS = {re.sub(r"[ -]", "_", column.name): column.key for column in (*REFERENCE_COLUMNS, ZERO_SHOT_COLUMN)}
"""Keys of columns by their headings."""
TEXT_VALUES: dict[Any, tuple[str, ...]] = {
    None: ("", "none", "default", "null"),
    True: ("true", "yes", "1"),
    False: ("false", "no", "0"),
}
"""Texts of a condition that mean these values."""


@dataclass(frozen=True)
class Condition:
    """Condition on a column, such as `model=gpt2` or `val_loss<3.2`."""

    name: str
    operator: str
    text: str
    """Value, or with `=` several, separated by commas."""

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Return the condition of `--where`.

        Raises:
            UserError: if it has no operator.
        """
        match = re.fullmatch(r"(.+?)(!=|<=|>=|=|<|>)(.*)", text, re.DOTALL)
        if match is None:
            expected = "expected COLUMN=VALUE, as in model=gpt2, or !=, <, <=, >, >= instead of ="
            raise UserError(f"--where: got {safe_repr(text)}; {expected}")
        return cls(match[1].strip(), match[2], match[3].strip())

    def holds(self, value: Any) -> bool:
        """Return whether a value fulfills the condition."""
        if self.operator in ("=", "!="):
            is_equal = any(_equals(value, text) for text in (self.text, *self.text.split(",")))
            return is_equal == (self.operator == "=")
        if value is None:
            return False
        return COMPARISONS[self.operator](float(value), float(self.text))


def _equals(value: Any, text: str) -> bool:
    if value is None or isinstance(value, bool):
        return text.lower() in TEXT_VALUES[value]
    if isinstance(value, int | float):
        number = _parse_number(text)
        return number is not None and math.isclose(value, number, rel_tol=1e-9)
    return str(value) == text


def _parse_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class RowSelection:
    """Rows to show."""

    where: tuple[Condition, ...] = ()
    sort: str = ""
    """Column to sort lines by, ascending; with `-` before it, descending. Empty: the order of the reference table."""
    top: int | None = None
    """Number of lines: the first ones with `sort`, else the best of each dataset. None: all."""


def select_rows(results: RowsT, selection: RowSelection, records: Mapping[str, Record]) -> RowsT:
    """Return the selected rows; measures and best rows are those among them.

    Args:
        results: rows of any status.
        selection: rows to select.
        records: values of each row by trial id.

    Raises:
        UserError: if a column does not exist, its values cannot be compared so, or no row is left.
    """
    if selection == RowSelection() or not results.rows:
        return results
    for condition in selection.where:
        name = resolve_column(condition.name, list_names(records.values()), "--where")
        values = [records[row.config.id].get(name) for row in results.rows]
        _check_condition(condition, name, values)
        rows = [row for row, value in zip(results.rows, values, strict=True) if condition.holds(value)]
        if not rows:
            raise UserError(
                f"--where: no row has {condition.name}{condition.operator}{condition.text}{_describe(values)}"
            )
        results = dataclasses.replace(results, rows=rows)
    groups = group_by_seed(results)
    if selection.sort:
        descending, name = selection.sort.startswith("-"), selection.sort.removeprefix("-")
        key = resolve_column(name, list_names(records.values()), "--sort")
        groups = _sort_groups(
            groups, {group.config.id: summarize_values(group, records, key) for group in groups}, descending
        )
        groups = groups[: selection.top]
    elif selection.top is not None:
        groups = _find_top(results, groups, selection.top)
    else:
        return results
    return dataclasses.replace(results, rows=[row for group in groups for row in group.rows], is_ordered=True)


def list_names(records: Iterable[Record]) -> list[str]:
    """Return the columns of records."""
    return list(dict.fromkeys(name for record in records for name in record))


def resolve_column(name: str, names: Sequence[str], option: str) -> str:
    """Return the column with a name: of results.csv, a heading, or the name of a field in another tool.

    Spaces and hyphens stand for underscores.

    Raises:
        UserError: if there is none.
    """
    key = re.sub(r"[ -]", "_", name.strip().lower())
    if key not in names:
        key = HEADINGS.get(key) or find_field(key) or key
    if key not in names:
        hint = format_suggestion(key, names)
        raise UserError(f"{option}: no column {safe_repr(name)}{hint or ';'} there are {', '.join(names)}")
    return key


def _check_condition(condition: Condition, name: str, values: Sequence[Any]) -> None:
    """Raise an error if a condition compares numbers with text.

    Raises:
        UserError: if the column has numbers and the value is none, or numbers are needed and the column has none.
    """
    known = [value for value in values if value is not None]
    are_numbers = all(map(is_number, known))
    texts = [condition.text] if condition.operator not in ("=", "!=") else [condition.text, *condition.text.split(",")]
    means_number = any(_parse_number(text) is not None or text.lower() in TEXT_VALUES[None] for text in texts)
    if condition.operator in ("=", "!=") and not (are_numbers and known and not means_number):
        return
    if not are_numbers:
        raise UserError(f"--where: {name} has texts, which {condition.operator} does not compare; expected = or !=")
    if _parse_number(condition.text) is None:
        raise UserError(f"--where: {name} has numbers; got {safe_repr(condition.text)}")


def _describe(values: Sequence[Any]) -> str:
    """Return the values that a column has, for a message."""
    texts = list(dict.fromkeys("none" if value is None else str(value) for value in values))
    shown = ", ".join(texts[:MAX_SHOWN_VALUES])
    return f"; it has {shown}" + (f" and {len(texts) - MAX_SHOWN_VALUES} more" if len(texts) > MAX_SHOWN_VALUES else "")


def collect_values(group: SeedGroup, records: Mapping[str, Record], name: str) -> list[Any]:
    """Return the known values of a column: of the done rows of a line, or of its only row."""
    rows = group.rows if len(group.rows) == 1 else [row for row in group.rows if row.status == DONE] or group.rows
    values = (records[row.config.id].get(name) for row in rows)
    return [value for value in values if value is not None]


def summarize_values(group: SeedGroup, records: Mapping[str, Record], name: str) -> Any:
    """Return the value of a line of the table, to sort by: the mean of numbers, else the first; None without one."""
    values = collect_values(group, records, name)
    if values and all(isinstance(value, int | float) for value in values):
        return statistics.fmean(values)
    return values[0] if values else None


def _sort_groups(groups: list[SeedGroup], values: Mapping[str, Any], descending: bool) -> list[SeedGroup]:
    """Return lines by their values, those without a value last."""
    known = [group for group in groups if values[group.config.id] is not None]
    is_mixed = len({isinstance(values[group.config.id], str) for group in known}) > 1
    known.sort(key=lambda g: str(values[g.config.id]) if is_mixed else values[g.config.id], reverse=descending)
    return [*known, *(group for group in groups if values[group.config.id] is None)]


def _find_top(results: SweepRows, groups: list[SeedGroup], number: int) -> list[SeedGroup]:
    """Return the best lines of each dataset, by the mean loss that its rows are ranked by."""
    losses = {}
    for group in groups:
        ranked = [loss for row in group.rows if row.status == DONE and (loss := results.ranked_loss(row)) is not None]
        losses[group.config.id] = statistics.fmean(ranked) if ranked else math.inf
    top: list[SeedGroup] = []
    for dataset in dict.fromkeys(group.config.dataset for group in groups):
        own = [group for group in groups if group.config.dataset == dataset]
        top += sorted(own, key=lambda group: losses[group.config.id])[:number]
    return top
