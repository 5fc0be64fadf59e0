"""What may stand in a sweep: one rule a field, the nearest name for a wrong one, all problems at once."""

from __future__ import annotations

import json
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raylm.config.catalog import DATASETS, MODELS, max_positions
from raylm.errors import Problem, SweepError, format_suggestion, safe_repr, unknown_name_problem

HUB_ID_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DATASET_ID_PATTERN = re.compile(HUB_ID_PATTERN.pattern + r"(:[\w.-]+)?")
BUCKET_URI_PATTERN = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/(?!\.\.?(/|$))[\w.=+-]+)*/?")
"""The URI of a bucket or of a part of it."""
SWEEP_NAME_PATTERN = re.compile(r"[A-Za-z0-9](?!.*\.\.)[A-Za-z0-9._-]{0,63}")
OPTIMIZERS = ("adafactor", "adamw")
LR_SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("auto", "float32", "bfloat16")
MAX_SEEDS = 10_000
"""A sweep of more seeds than this is taken for a slip of the pen."""
MAX_GPUS = 1000
"""As many GPUs of one node."""


# ---- the fields of a trial, one by one ---------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldRule:
    """What a field takes: its type, whether None is allowed, and a condition with its words."""

    value_type: type
    expected: str
    is_valid: Callable[[Any], bool] = lambda value: True
    optional: bool = False


FIELD_RULES: dict[str, FieldRule] = {
    "context_length": FieldRule(int, "a whole number of tokens, at least 2", lambda v: 2 <= v <= 10**9),
    "batch_size": FieldRule(int, "a whole number from 1 to 1,000,000", lambda v: 1 <= v <= 1_000_000),
    "epochs": FieldRule(int, "a whole number from 1 to 10,000", lambda v: 1 <= v <= 10_000),
    "learning_rate": FieldRule(float, "a finite number above 0", lambda v: math.isfinite(v) and v > 0),
    "warmup_ratio": FieldRule(float, "a number from 0 to 1", lambda v: 0 <= v <= 1),
    "weight_decay": FieldRule(float, "a finite number, 0 or above", lambda v: math.isfinite(v) and v >= 0),
    "max_grad_norm": FieldRule(float, "a finite number, 0 or above", lambda v: math.isfinite(v) and v >= 0),
    "dropout": FieldRule(float, "a number from 0 to below 1, or None", lambda v: 0 <= v < 1, optional=True),
    "seed": FieldRule(int, "a whole number from 0 to 4,294,967,295", lambda v: 0 <= v < 2**32),
    "pretrained": FieldRule(bool, "True or False"),
    "max_train_tokens": FieldRule(
        int, "a whole number of tokens, at least 1, or None", lambda v: 1 <= v <= 10**18, optional=True
    ),
    "evals_per_epoch": FieldRule(int, "a whole number from 1 to 1,000", lambda v: 1 <= v <= 1000),
}
FIELD_CHOICES: dict[str, tuple[str, ...]] = {"optimizer": OPTIMIZERS, "lr_schedule": LR_SCHEDULES}


def validate_field(name: str, value: object) -> tuple[Any, Problem | None]:
    """The value of a trial's field in its own type, and what is wrong with it."""
    if isinstance(value, str):
        value = str(value)  # NumPy's strings too
    if name in FIELD_CHOICES:
        return value, check_choice(name, value, FIELD_CHOICES[name])
    if name in ("dataset", "model"):
        if not isinstance(value, str) or not value.strip():
            return value, Problem(name, f"got {safe_repr(value)}; expected a name")
        problem = _check_dataset(value) if name == "dataset" else _check_model(value)
        return value, Problem(name, problem) if problem else None
    rule = FIELD_RULES[name]
    if value is None and rule.optional:
        return value, None
    meant = coerce(rule.value_type, value)
    if meant is None or not rule.is_valid(meant):
        return value, Problem(name, f"got {safe_repr(value)}; expected {rule.expected}")
    return meant, None


def is_valid_field(name: str, value: object) -> bool:
    """Whether a trial's field can be what a record says, its files aside."""
    return validate_field(name, value)[1] is None if name in FIELD_RULES else isinstance(value, str)


def coerce(target_type: type, value: object) -> Any:
    """The value as `kind`, NumPy's scalars included; None where it is of another kind."""
    if (type(value).__module__, type(value).__name__) in (("numpy", "bool"), ("numpy", "bool_")):
        value = bool(value)
    if target_type is bool or isinstance(value, bool):
        return value if target_type is bool and isinstance(value, bool) else None
    try:
        if target_type is int and isinstance(value, numbers.Integral):
            return int(value)
        if target_type is float and isinstance(value, numbers.Real):
            return float(value) + 0.0  # there is one zero
    except OverflowError:
        return None
    return None


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> Problem | None:
    """What is wrong with a value that must be one of some words."""
    if isinstance(value, str) and value in choices:
        return None
    hint = format_suggestion(value, choices) if isinstance(value, str) else ""
    return Problem(name, f"got {safe_repr(value)}; expected one of {', '.join(choices)}{hint}")


def _check_dataset(name: str) -> str | None:
    if name in DATASETS or _is_file(name):
        return None
    if _is_folder(name):
        missing = [file for file in ("train.txt", "validation.txt") if not _is_file(name, file)]
        return f"the folder {name!r} has no {' and no '.join(missing)}" if missing else None
    if DATASET_ID_PATTERN.fullmatch(name):
        return None
    return (
        f"got {safe_repr(name)}; expected one of {', '.join(DATASETS)}, a hub id owner/name, a text file, "
        f"or a folder with train.txt and validation.txt{format_suggestion(name, DATASETS)}"
    )


def _check_model(name: str) -> str | None:
    if name in MODELS:
        return None
    if _is_file(name, "config.json"):
        return None if _load_local_config(name) is not None else f"{name}/config.json is not a JSON object"
    if _is_folder(name):
        return f"the folder {name!r} has no config.json"
    if HUB_ID_PATTERN.fullmatch(name):
        return None
    return (
        f"got {safe_repr(name)}; expected one of {', '.join(MODELS)}, a hub id owner/name, "
        f"or a folder with config.json{format_suggestion(name, MODELS)}"
    )


def _is_file(*parts: str) -> bool:
    try:
        return Path(*parts).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


# ---- several fields together, the sweep's options ------------------------------------------------------


def check_combination(point: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with a combination of fields that are right one by one."""
    longest = max_context_length(point["model"])
    if longest is not None and point["context_length"] > longest:
        what = f"got {safe_repr(point['context_length'])}; {point['model']} takes at most {longest} tokens"
        return [Problem("context_length", what)]
    return []


def max_context_length(model: str) -> int | None:
    """The longest context that a model takes, in tokens, as far as this can be known without the hub."""
    if model in MODELS:
        return MODELS[model].shape.max_positions
    return max_positions(_load_local_config(model) or {})


def _load_local_config(folder: str) -> dict[str, Any] | None:
    try:
        content = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def check_sweep_options(options: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the options of a sweep besides its space; those not given are right."""
    problems = []
    if "name" in options and not (isinstance(options["name"], str) and SWEEP_NAME_PATTERN.fullmatch(options["name"])):
        expected = "a folder's name of at most 64 letters, digits, '.', '_', '-', the first a letter or digit, no '..'"
        problems.append(Problem("name", f"got {safe_repr(options['name'])}; expected {expected}"))
    if (seeds := options.get("seeds")) is not None:
        if not isinstance(seeds, (list, tuple, range)) or not 0 < len(seeds) <= MAX_SEEDS:
            what = f"got {safe_repr(seeds)}; expected up to {MAX_SEEDS:,} different whole numbers, as in (0, 1, 2)"
            problems.append(Problem("seeds", what))
        elif wrong := [replace(p, location="seeds") for seed in seeds if (p := validate_field("seed", seed)[1])]:
            problems += wrong
        elif len(set(seeds)) != len(seeds):
            problems.append(
                Problem("seeds", f"got {safe_repr(seeds)}; expected different whole numbers, as in (0, 1, 2)")
            )
    if "precision" in options and (problem := check_choice("precision", options["precision"], PRECISIONS)):
        problems.append(problem)
    failures = options.get("max_failures", 0)
    if coerce(int, failures) is None or not 0 <= failures <= 1000:
        problems.append(Problem("max_failures", f"got {safe_repr(failures)}; expected a whole number from 0 to 1,000"))
    if options.get("storage") is not None and (problem := check_storage(options["storage"])):
        problems.append(problem)
    resources_given = options.get("resources")
    if "resources" in options and not (hasattr(resources_given, "gpus") and hasattr(resources_given, "cpus")):
        problems.append(
            Problem("resources", f"got {safe_repr(resources_given)}; expected raylm.Resources(gpus=..., cpus=...)")
        )
    return problems


def check_storage(uri: object) -> Problem | None:
    """What is wrong with the place of the results folders."""
    expected = "expected the path of a folder, or s3://bucket/path or gs://bucket/path"
    if not isinstance(uri, (str, os.PathLike)) or not str(uri).strip() or "\0" in str(uri):
        return Problem("storage", f"got {safe_repr(uri)}; {expected}")
    if "://" in str(uri):
        if BUCKET_URI_PATTERN.fullmatch(str(uri)):
            return None
        if "@" in str(uri):  # it may hold a key, which is not to be shown
            return Problem("storage", f"got a URI with an '@'; {expected}: keys belong into the environment")
        return Problem("storage", f"got {safe_repr(uri)}; {expected}")
    try:
        os.fsencode(Path(uri).expanduser())
        Path(uri).expanduser().exists()
    except (OSError, RuntimeError, ValueError) as error:
        return Problem("storage", f"got {safe_repr(uri)}; {expected}: {error}")
    return None


def check_resources(gpus: object, cpus: object) -> list[Problem]:
    """What is wrong with a request for resources."""
    problems = []
    amount = 0.0 if gpus is None or gpus == "auto" else coerce(float, gpus)
    if amount is None or not (0 <= amount <= 1 or amount in range(2, MAX_GPUS + 1)):
        what = f"got {safe_repr(gpus)}; expected 0, a fraction of one GPU, a whole number of GPUs, or 'auto'"
        problems.append(Problem("resources.gpus", what))
    if (coerce(int, cpus) or 0) < 1:
        problems.append(Problem("resources.cpus", f"got {safe_repr(cpus)}; expected a whole number, at least 1"))
    return problems


def check_batch_sizes(location: str, batch_sizes: Iterable[int], gpus: float | str | None) -> Problem | None:
    """What is wrong with these batch sizes where a batch's windows are shared by so many GPUs."""
    least = min(batch_sizes)
    if not isinstance(gpus, int | float) or least >= gpus:
        return None
    what = f"got {least}; a trial's {gpus:.0f} GPUs share the windows of a batch: expected at least {gpus:.0f} of them"
    return Problem(location, f"{what}, or fewer resources.gpus")


def parse_overrides(assignments: Iterable[str], field_names: Iterable[str]) -> dict[str, Any]:
    """The values of `--set field=value`, each read as the type of its field.

    Raises:
        SweepError: for all that are not of that form, name no field, or do not fit it.
    """
    field_names, values, problems = list(field_names), {}, []
    for text in assignments:
        name, equals, given = text.partition("=")
        if not equals:
            problems.append(Problem(text, "expected field=value"))
        elif name not in field_names:
            problems.append(unknown_name_problem(name, field_names))
        else:
            values[name], problem = validate_field(name, _parse_value(FIELD_RULES.get(name), given))
            problems += [problem] if problem else []
    if problems:
        raise SweepError([replace(p, location=f"--set {p.location}") for p in problems], "the command line")
    return values


def _parse_value(rule: FieldRule | None, text: str) -> object:
    """The text as the value that it spells for this rule, or as it is."""
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
