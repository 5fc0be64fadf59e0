"""Measurements of the first hour in one JSON file, written after each of them, and their Markdown tables."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from first_hour_parts.plan import PARTS

Measurement = dict[str, Any]
"""Measurement with `part`, `case`, `status` (`done`, `failed`, `skipped`), `values` or `message`, and `seconds`."""

REFERENCE_KEY, LOSSES_KEY = "largest difference from the first", "losses"


class Records:
    """Measurements in a JSON file, each with the number of its environment: card, versions and code."""

    def __init__(self, file: Path) -> None:
        self.file = file
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.environments: list[dict[str, Any]] = content.get("environments", [])
        self.measurements: list[Measurement] = content.get("measurements", [])

    def number_of(self, environment: Mapping[str, Any]) -> int:
        """Return the number of an environment, added if it is new: results of others are kept apart from its own."""
        if environment not in self.environments:
            self.environments.append(dict(environment))
        return self.environments.index(dict(environment))

    def find(self, environment: int, part: str, case: str) -> Measurement | None:
        """Return the measurement of a case in an environment, or None."""
        key = environment, part, case
        return next((m for m in self.measurements if (m["environment"], m["part"], m["case"]) == key), None)

    def add(self, measurement: Measurement) -> None:
        """Add a measurement, in place of an earlier one of the same case, and write both files."""
        earlier = self.find(measurement["environment"], measurement["part"], measurement["case"])
        self.measurements = [*(m for m in self.measurements if m is not earlier), measurement]
        content = {"environments": self.environments, "measurements": self.measurements}
        _write(self.file, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
        _write(self.file.with_suffix(".md"), self.to_markdown())

    def to_markdown(self) -> str:
        """Return a section per environment with a table per part, in the order of the plan."""
        lines = ["# The first hour on a GPU", ""]
        for number, environment in enumerate(self.environments):
            own = [m for m in self.measurements if m["environment"] == number]
            simulated = (
                ", simulated: its losses and times are not those of a card" if environment.get("simulated") else ""
            )
            lines += [f"## {environment['device']}{simulated}", "", describe_environment(environment), ""]
            for part in PARTS:
                order = {case.name: number for number, case in enumerate(part.cases)}
                rows = [m for m in own if m["part"] == part.name]
                rows.sort(key=lambda m, order=order: order.get(m["case"], len(order)))
                lines += [f"### {part.title}", "", *_table(rows), ""] if rows else []
        return "\n".join(lines)


def describe_environment(environment: Mapping[str, Any]) -> str:
    """Return what was measured on and with, in one paragraph."""
    words = [f"{name} {value}" for name, value in environment.items() if name != "device" and value is not None]
    return ", ".join(words) + "."


def list_rows(measurement: Measurement) -> list[tuple[str, dict[str, Any]]]:
    """Return the values of a measurement as rows: its own, then one for each value that is itself a mapping."""
    values = measurement.get("values", {measurement["status"]: measurement.get("message", "")})
    own = {key: value for key, value in values.items() if not isinstance(value, (dict, list))}
    parts = [(f"{measurement['case']}: {key}", value) for key, value in values.items() if isinstance(value, dict)]
    return [*([(measurement["case"], own)] if own else []), *parts]


def _table(measurements: Sequence[Measurement]) -> list[str]:
    """Return the lines of a table of these measurements; those that failed have their message."""
    rows = [row for measurement in _with_differences(measurements) for row in list_rows(measurement)]
    columns = list(dict.fromkeys(key for _, values in rows for key in values))
    lines = [f"| {' | '.join(['case', *columns])} |", "| --- " * (len(columns) + 1) + "|"]
    for name, values in rows:
        lines.append(f"| {' | '.join([_cell(name), *(_cell(values.get(column)) for column in columns)])} |")
    return lines


def _with_differences(rows: Sequence[Measurement]) -> list[Measurement]:
    """Return the rows, those with losses with their largest difference from the losses of the first such row."""
    first = next((row["values"][LOSSES_KEY] for row in rows if LOSSES_KEY in row.get("values", {})), None)
    results = []
    for row in rows:
        losses = row.get("values", {}).get(LOSSES_KEY)
        if losses and first and len(losses) == len(first) and None not in (*losses, *first):
            largest = max(abs(own - other) for own, other in zip(losses, first, strict=True))
            row = {**row, "values": {**row["values"], REFERENCE_KEY: largest}}
        results.append(row)
    return results


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else " ".join(str(value).replace("|", "/").split())[:200]


def _finite(value: Any) -> Any:
    """Return a value for JSON, with None for numbers that are not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _write(file: Path, text: str) -> None:
    """Write a file completely or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)
