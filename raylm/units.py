"""Numbers with units, as text."""

from __future__ import annotations

GIB = 2**30
"""Bytes of a gibibyte."""


def pluralize(number: int, noun: str) -> str:
    """Return a count with its noun: `1 trial`, `1,200 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Return a duration in its largest fitting unit: `8.1 s`, `95 s`, `4.2 min`, `3.1 h`, `12 d`."""
    unit, size = next(((u, s) for u, s in (("s", 1), ("min", 60), ("h", 3600)) if seconds < 99.5 * s), ("d", 86400))
    return f"{seconds / size:,.{1 if seconds < 9.95 * size else 0}f} {unit}"
