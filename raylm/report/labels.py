"""Names and values of trial fields as labels of figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.results.rows import Row

MAX_LABEL_CHARS = 24
"""Maximum length of a value; of a longer one, such as a path, the end is shown."""


def find_varying_fields(rows: Iterable[Row], *exclude: str) -> list[str]:
    """Return the fields with more than one value in these rows, in the order of `TrialConfig`."""
    configs = [row.config.as_dict() for row in rows]
    names = [field.name for field in fields(TrialConfig) if field.name not in exclude]
    return [name for name in names if len({config[name] for config in configs}) > 1]


def format_field_name(name: str) -> str:
    """Return the name of a field with spaces."""
    return name.replace("_", " ")


def format_field_value(value: Any) -> str:
    """Return the value of a field, shortened to `MAX_LABEL_CHARS`."""
    if value is None or isinstance(value, bool):
        return {None: "default", True: "yes", False: "no"}[value]
    text = " ".join((f"{value:.3g}" if isinstance(value, float) else str(value)).split())
    return text if len(text) <= MAX_LABEL_CHARS else "…" + text[1 - MAX_LABEL_CHARS :]


def format_label(row: Row, names: Sequence[str]) -> str:
    """Return the values of some fields of a row."""
    return ", ".join(format_field_value(getattr(row.config, name)) for name in names)


def format_legend(names: Sequence[str]) -> str:
    """Return the legend title for labels of these fields."""
    return ", ".join(map(format_field_name, names))
