"""Fields of trials that the command line sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from raylm.config.other_names import unknown_field
from raylm.config.validation import FIELD_RULES, FieldRule, validate_field
from raylm.errors import Problem, SweepError, safe_repr


def parse_overrides(assignments: Iterable[str], field_names: Iterable[str]) -> dict[str, Any]:
    """Return the values of `--set field=value` options, each converted to the type of its field.

    Raises:
        SweepError: If options have another form, an unknown field or an invalid value; lists all of them.
    """
    field_names, values, problems = list(field_names), {}, []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            problems.append(Problem(assignment, "expected field=value"))
        elif name not in field_names:
            problems.append(unknown_field(name, field_names))
        else:
            values[name], problem = validate_field(name, _parse_value(FIELD_RULES.get(name), text))
            problems += [_explain_list(problem, name, text)] if problem else []
    if problems:
        raise SweepError([replace(p, location=f"--set {p.location}") for p in problems], "the command line")
    return values


def _explain_list(problem: Problem, name: str, text: str) -> Problem:
    """Return the problem of a value; if it is a list of valid values, advice to put them into the sweep file."""
    rule = FIELD_RULES.get(name)
    parts = [part.strip(" []()'\"") for part in text.split(",")]
    values = [_parse_value(rule, part) for part in parts]
    if ("," not in text and "[" not in text) or any(validate_field(name, value)[1] for value in values):
        return problem
    grid = f"tune.grid_search([{', '.join(map(repr, values))}])"
    return Problem(name, f"got {safe_repr(text)}; --set takes one value; expected {grid} in the sweep file for several")


def _parse_value(rule: FieldRule | None, text: str) -> object:
    """Return the value that a text denotes under a field's rule, or the text itself if it denotes none."""
    if rule is None:
        return text
    if rule.optional and text.lower() == "none":
        return None
    if rule.value_type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return rule.value_type(text)
    except ValueError:
        return text
