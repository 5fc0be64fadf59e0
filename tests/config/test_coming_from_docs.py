"""Names of other tools in docs/coming-from.md: the page and the answers to mistakes agree."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from raylm.config.other_names import unknown_field, unknown_sweep_option
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "coming-from.md").read_text(encoding="utf-8")
FIELDS = [field.name for field in dataclasses.fields(TrialConfig)]
OPTIONS = [field.name for field in dataclasses.fields(Sweep)]


def read_rows(start: str, end: str) -> list[list[list[str]]]:
    """Return the names of each cell of each row of the tables between two texts of the page."""
    part = PAGE[PAGE.index(start) : PAGE.index(end)]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    return [[re.findall(r"`(\w+)`", cell) for cell in line.strip("|").split("|")] for line in lines]


def test_fields_of_the_page_are_those_meant() -> None:
    rows = read_rows("## Names of fields", "These have no field")
    assert len(rows) >= 16
    for (field,), *others in rows:
        assert field in FIELDS
        for name in {name for names in others for name in names} - {field}:
            assert unknown_field(name, FIELDS).message == f"is not known; did you mean {field!r}?"


def test_names_without_a_field_are_answered_with_advice() -> None:
    rows = read_rows("These have no field", "## Names of a sweep's options")
    assert len(rows) >= 12
    for names, *_ in rows:
        for name in names:
            answer = unknown_field(name, FIELDS).message
            assert "did you mean" not in answer and not answer.startswith("is not known"), name


def test_options_of_the_page_are_those_meant() -> None:
    rows = read_rows("## Names of a sweep's options", "## From Trainer")
    assert len(rows) >= 6
    for (option,), *others in rows:
        assert option in OPTIONS
        for name in {name for names in others for name in names} - {option}:
            assert unknown_sweep_option(name, OPTIONS, FIELDS).message == f"is not known; did you mean {option!r}?"


@pytest.mark.parametrize("name", ["metric", "mode", "goal", "direction"])
def test_objective_of_other_tools_is_not_needed(name: str) -> None:
    assert "is not needed" in unknown_sweep_option(name, OPTIONS, FIELDS).message
