"""Names and values of trial fields as labels of figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.results.rows import Row

MAX_LABEL_CHARS = 24
"""Maximum length of a value; of a longer one, such as a path, the end is shown."""
UNLIMITED_FIELDS = ("max_train_tokens", "max_documents")
"""Fields whose None means all."""
MAX_DIGITS = 17
"""Significant digits that tell any two floats apart."""


def find_varying_fields(rows: Iterable[Row], *exclude: str) -> list[str]:
    """Return the fields with more than one value in these rows, in the order of `TrialConfig`."""
    return list_varying_fields((row.config for row in rows), *exclude)


def list_varying_fields(configs: Iterable[TrialConfig], *exclude: str) -> list[str]:
    """Return the fields with more than one value in these trials, in the order of `TrialConfig`."""
    trials = list(configs)
    names = [field.name for field in fields(TrialConfig) if field.name not in exclude]
    return [name for name in names if len({getattr(trial, name) for trial in trials}) > 1]


def is_number(value: Any) -> bool:
    """Return whether a value is a number, and not a truth value, which Python counts among them."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def format_field_name(name: str) -> str:
    """Return the name of a field with spaces."""
    return name.replace("_", " ")


def format_field_value(value: Any) -> str:
    """Return the value of a field, shortened to `MAX_LABEL_CHARS`."""
    if value is None or isinstance(value, bool):
        return {None: "default", True: "yes", False: "no"}[value]
    text = " ".join((f"{value:.3g}" if isinstance(value, float) else str(value)).split())
    return _shorten(text)


def format_field_values(name: str, values: Sequence[Any]) -> list[str]:
    """Return the values of a field, with as many digits or characters as tell different ones apart."""
    different = set(values)
    for digits in range(3, MAX_DIGITS + 1):
        texts = {value: _format_exactly(name, value, digits) for value in different}
        if len(set(texts.values())) == len(different):
            break
    short = {value: _shorten(text) for value, text in texts.items()} if values else {}
    chosen = short if len(set(short.values())) == len(different) else texts
    return [chosen[value] for value in values]


def _format_exactly(name: str, value: Any, digits: int) -> str:
    if value is None and name in UNLIMITED_FIELDS:
        return "all"
    if value is None or isinstance(value, bool):
        return format_field_value(value)
    return " ".join((f"{value:.{digits}g}" if isinstance(value, float) else str(value)).split())


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_LABEL_CHARS else "…" + text[1 - MAX_LABEL_CHARS :]


def format_label(row: Row, names: Sequence[str]) -> str:
    """Return the values of some fields of a row."""
    return ", ".join(format_field_value(getattr(row.config, name)) for name in names)


def format_legend(names: Sequence[str]) -> str:
    """Return the legend title for labels of these fields."""
    return ", ".join(map(format_field_name, names))
