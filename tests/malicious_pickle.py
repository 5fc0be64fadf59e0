"""Pickle that runs code when it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class MaliciousObject:
    """Object whose pickle creates the file `marker` when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")
