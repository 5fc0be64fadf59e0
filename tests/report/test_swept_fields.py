"""Rows of a search: every output tells each row from the others without the hash in its name."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole
from sample_rows import sample_row

from raylm.monitor.console import Console
from raylm.report import formats, html, labels
from raylm.report.json_output import format_report_json
from raylm.report.latex import format_latex
from raylm.results.rows import SweepRows
from raylm.results.storage import Folder

RANDOM = random.Random(0)
SEARCHED: list[dict[str, Any]] = [
    {
        "learning_rate": 10 ** RANDOM.uniform(-4, -3.99),  # values that three digits do not tell apart
        "dropout": RANDOM.choice([None, 0.0, 0.1]),
        "optimizer": RANDOM.choice(["adafactor", "adamw"]),
        "context_length": RANDOM.choice([256, 1024]),
    }
    for _ in range(24)
]
RESULTS = SweepRows(Folder(Path("/nowhere")), [sample_row(3.0, **fields) for fields in SEARCHED])
"""Rows with equal losses."""
HASH = re.compile(r"-?[0-9a-f]{10}\b")


def print_table(results: SweepRows) -> str:
    file = io.StringIO()
    options = {"force_terminal": True, "highlight": False, "soft_wrap": True, "color_system": None}
    Console(rich_console=RichConsole(file=file, width=80, **options)).print_table(results)  # type: ignore[arg-type]
    return file.getvalue()


def read_csv(results: SweepRows) -> list[str]:
    rows = csv.DictReader(formats.format_csv(results).splitlines())
    fields = ("learning_rate", "dropout", "optimizer", "context_length")
    return [" ".join(row[name] for name in fields) for row in rows]


def read_json(results: SweepRows) -> list[str]:
    report = json.loads(format_report_json(results))
    assert report["swept"] == ["context_length", "optimizer", "learning_rate", "dropout"]
    return [" ".join(str(row[name]) for name in report["swept"]) for row in report["rows"]]


OUTPUTS: dict[str, Callable[[SweepRows], list[str]]] = {
    "markdown": lambda results: formats.format_markdown(results).splitlines()[2:26],
    "latex": lambda results: [line for line in format_latex(results).splitlines() if line.startswith("pydocs")],
    "page": lambda results: re.findall(r"<tr[^>]*>\s*<td.*?</tr>", html.render_html(results), re.DOTALL)[:24],
    "terminal": lambda results: re.findall(r"^ *(?:pydocs|\d+) .*", print_table(results), re.MULTILINE)[:24],
    "csv": read_csv,
    "json": read_json,
    "run names": lambda results: [row.config.run_name for row in results.rows],
}


@pytest.mark.parametrize("output", list(OUTPUTS))
def test_rows_differ_without_their_hashes(output: str) -> None:
    rows = OUTPUTS[output](RESULTS)
    assert len(rows) == len(RESULTS.rows)
    if output == "run names":  # with six digits of the learning rate
        assert all(
            "-lr" in name and ("-adamw" in name) == (row.config.optimizer == "adamw")
            for name, row in zip(rows, RESULTS.rows, strict=True)
        )
    plain = [re.sub(r'(data-trials|id|aria-\w+|href|title)="[^"]*"', "", HASH.sub("", row)) for row in rows]
    assert len(set(plain)) == len(plain), plain


def test_values_of_a_field_have_as_many_digits_as_tell_them_apart() -> None:
    assert labels.format_field_values("learning_rate", [1e-4, 3.14159e-4]) == ["0.0001", "0.000314"]
    assert labels.format_field_values("learning_rate", [1.00001e-4, 1e-4]) == ["0.000100001", "0.0001"]
    paths = [f"{'x' * 30}{number}{'y' * 30}" for number in range(2)]
    assert labels.format_field_values("dataset", paths) == paths
    assert labels.format_field_values("max_train_tokens", [None, 5]) == ["all", "5"]
