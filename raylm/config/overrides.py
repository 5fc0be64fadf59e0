"""Fields of trials that the command line sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from raylm.config.validation import FIELD_RULES, FieldRule, validate_field
from raylm.errors import Problem, SweepError, unknown_name_problem


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
            problems.append(unknown_name_problem(name, field_names))
        else:
            values[name], problem = validate_field(name, _parse_value(FIELD_RULES.get(name), text))
            problems += [problem] if problem else []
    if problems:
        raise SweepError([replace(p, location=f"--set {p.location}") for p in problems], "the command line")
    return values


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
