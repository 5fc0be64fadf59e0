"""Result of a check of `raylm doctor`, of a machine, a node or a cluster file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckResult:
    """Result of one check of `raylm doctor`."""

    host: str
    """`here`, the host name of a node, or the file and line of a setting."""
    check: str
    """Subject of the check."""
    status: str
    """Observed state."""
    advice: str = ""
    """Action to take; empty if there is no problem."""
