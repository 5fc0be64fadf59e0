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

from raylm.config.catalog import DATASETS, MODELS, positions
from raylm.errors import Problem, SweepError, nearest, show, unknown

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DATASET_ID = re.compile(HUB_ID.pattern + r"(:[\w.-]+)?")
BUCKET = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/(?!\.\.?(/|$))[\w.=+-]+)*/?")
"""The URI of a bucket or of a part of it."""
SWEEP_NAME = re.compile(r"[A-Za-z0-9](?!.*\.\.)[A-Za-z0-9._-]{0,63}")
OPTIMIZERS = ("adafactor", "adamw")
LR_SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("auto", "float32", "bfloat16")
MOST_SEEDS = 10_000
"""A sweep of more seeds than this is taken for a slip of the pen."""
MOST_GPUS = 1000
"""As many GPUs of one node."""


# ---- the fields of a trial, one by one ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """What a field takes: its type, whether None is allowed, and a condition with its words."""

    type: type
    expected: str
    holds: Callable[[Any], bool] = lambda value: True
    optional: bool = False


RULES: dict[str, Rule] = {
    "context_length": Rule(int, "a whole number of tokens, at least 2", lambda v: 2 <= v <= 10**9),
    "batch_size": Rule(int, "a whole number from 1 to 1,000,000", lambda v: 1 <= v <= 1_000_000),
    "epochs": Rule(int, "a whole number from 1 to 10,000", lambda v: 1 <= v <= 10_000),
    "learning_rate": Rule(float, "a finite number above 0", lambda v: math.isfinite(v) and v > 0),
    "warmup_ratio": Rule(float, "a number from 0 to 1", lambda v: 0 <= v <= 1),
    "weight_decay": Rule(float, "a finite number, 0 or above", lambda v: math.isfinite(v) and v >= 0),
    "max_grad_norm": Rule(float, "a finite number, 0 or above", lambda v: math.isfinite(v) and v >= 0),
    "dropout": Rule(float, "a number from 0 to below 1, or None", lambda v: 0 <= v < 1, optional=True),
    "seed": Rule(int, "a whole number from 0 to 4,294,967,295", lambda v: 0 <= v < 2**32),
    "pretrained": Rule(bool, "True or False"),
    "max_train_tokens": Rule(
        int, "a whole number of tokens, at least 1, or None", lambda v: 1 <= v <= 10**18, optional=True
    ),
    "evals_per_epoch": Rule(int, "a whole number from 1 to 1,000", lambda v: 1 <= v <= 1000),
}
CHOICES: dict[str, tuple[str, ...]] = {"optimizer": OPTIMIZERS, "lr_schedule": LR_SCHEDULES}


def field_value(name: str, value: object) -> tuple[Any, Problem | None]:
    """The value of a trial's field in its own type, and what is wrong with it."""
    if isinstance(value, str):
        value = str(value)  # NumPy's strings too
    if name in CHOICES:
        return value, choice(name, value, CHOICES[name])
    if name in ("dataset", "model"):
        if not isinstance(value, str) or not value.strip():
            return value, Problem(name, f"got {show(value)}; expected a name")
        problem = _dataset(value) if name == "dataset" else _model(value)
        return value, Problem(name, problem) if problem else None
    rule = RULES[name]
    if value is None and rule.optional:
        return value, None
    meant = typed(rule.type, value)
    if meant is None or not rule.holds(meant):
        return value, Problem(name, f"got {show(value)}; expected {rule.expected}")
    return meant, None


def is_recorded(name: str, value: object) -> bool:
    """Whether a trial's field can be what a record says, its files aside."""
    return field_value(name, value)[1] is None if name in RULES else isinstance(value, str)


def typed(kind: type, value: object) -> Any:
    """The value as `kind`, NumPy's scalars included; None where it is of another kind."""
    if (type(value).__module__, type(value).__name__) in (("numpy", "bool"), ("numpy", "bool_")):
        value = bool(value)
    if kind is bool or isinstance(value, bool):
        return value if kind is bool and isinstance(value, bool) else None
    try:
        if kind is int and isinstance(value, numbers.Integral):
            return int(value)
        if kind is float and isinstance(value, numbers.Real):
            return float(value) + 0.0  # there is one zero
    except OverflowError:
        return None
    return None


def choice(name: str, value: object, choices: tuple[str, ...]) -> Problem | None:
    """What is wrong with a value that must be one of some words."""
    if isinstance(value, str) and value in choices:
        return None
    hint = nearest(value, choices) if isinstance(value, str) else ""
    return Problem(name, f"got {show(value)}; expected one of {', '.join(choices)}{hint}")


def _dataset(name: str) -> str | None:
    if name in DATASETS or _is_file(name):
        return None
    if _is_folder(name):
        missing = [file for file in ("train.txt", "validation.txt") if not _is_file(name, file)]
        return f"the folder {name!r} has no {' and no '.join(missing)}" if missing else None
    if DATASET_ID.fullmatch(name):
        return None
    return (
        f"got {show(name)}; expected one of {', '.join(DATASETS)}, a hub id owner/name, a text file, "
        f"or a folder with train.txt and validation.txt{nearest(name, DATASETS)}"
    )


def _model(name: str) -> str | None:
    if name in MODELS:
        return None
    if _is_file(name, "config.json"):
        return None if _local_model_config(name) is not None else f"{name}/config.json is not a JSON object"
    if _is_folder(name):
        return f"the folder {name!r} has no config.json"
    if HUB_ID.fullmatch(name):
        return None
    return (
        f"got {show(name)}; expected one of {', '.join(MODELS)}, a hub id owner/name, "
        f"or a folder with config.json{nearest(name, MODELS)}"
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


def together(point: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with a combination of fields that are right one by one."""
    longest = longest_context(point["model"])
    if longest is not None and point["context_length"] > longest:
        what = f"got {show(point['context_length'])}; {point['model']} takes at most {longest} tokens"
        return [Problem("context_length", what)]
    return []


def longest_context(model: str) -> int | None:
    """The longest context that a model takes, in tokens, as far as this can be known without the hub."""
    if model in MODELS:
        return MODELS[model].shape.positions
    return positions(_local_model_config(model) or {})


def _local_model_config(folder: str) -> dict[str, Any] | None:
    try:
        content = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def sweep_options(named: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the options of a sweep besides its space; those not given are right."""
    problems = []
    if "name" in named and not (isinstance(named["name"], str) and SWEEP_NAME.fullmatch(named["name"])):
        expected = "a folder's name of at most 64 letters, digits, '.', '_', '-', the first a letter or digit, no '..'"
        problems.append(Problem("name", f"got {show(named['name'])}; expected {expected}"))
    if (seeds := named.get("seeds")) is not None:
        if not isinstance(seeds, (list, tuple, range)) or not 0 < len(seeds) <= MOST_SEEDS:
            what = f"got {show(seeds)}; expected up to {MOST_SEEDS:,} different whole numbers, as in (0, 1, 2)"
            problems.append(Problem("seeds", what))
        elif wrong := [replace(p, where="seeds") for seed in seeds if (p := field_value("seed", seed)[1])]:
            problems += wrong
        elif len(set(seeds)) != len(seeds):
            problems.append(Problem("seeds", f"got {show(seeds)}; expected different whole numbers, as in (0, 1, 2)"))
    if "precision" in named and (problem := choice("precision", named["precision"], PRECISIONS)):
        problems.append(problem)
    failures = named.get("max_failures", 0)
    if typed(int, failures) is None or not 0 <= failures <= 1000:
        problems.append(Problem("max_failures", f"got {show(failures)}; expected a whole number from 0 to 1,000"))
    if named.get("storage") is not None and (problem := storage(named["storage"])):
        problems.append(problem)
    resources_given = named.get("resources")
    if "resources" in named and not (hasattr(resources_given, "gpus") and hasattr(resources_given, "cpus")):
        problems.append(
            Problem("resources", f"got {show(resources_given)}; expected raylm.Resources(gpus=..., cpus=...)")
        )
    return problems


def storage(place: object) -> Problem | None:
    """What is wrong with the place of the results folders."""
    expected = "expected the path of a folder, or s3://bucket/path or gs://bucket/path"
    if not isinstance(place, (str, os.PathLike)) or not str(place).strip() or "\0" in str(place):
        return Problem("storage", f"got {show(place)}; {expected}")
    if "://" in str(place):
        if BUCKET.fullmatch(str(place)):
            return None
        if "@" in str(place):  # it may hold a key, which is not to be shown
            return Problem("storage", f"got a URI with an '@'; {expected}: keys belong into the environment")
        return Problem("storage", f"got {show(place)}; {expected}")
    try:
        os.fsencode(Path(place).expanduser())
        Path(place).expanduser().exists()
    except (OSError, RuntimeError, ValueError) as error:
        return Problem("storage", f"got {show(place)}; {expected}: {error}")
    return None


def resources(gpus: object, cpus: object) -> list[Problem]:
    """What is wrong with a request for resources."""
    problems = []
    amount = 0.0 if gpus is None or gpus == "auto" else typed(float, gpus)
    if amount is None or not (0 <= amount <= 1 or amount in range(2, MOST_GPUS + 1)):
        what = f"got {show(gpus)}; expected 0, a fraction of one GPU, a whole number of GPUs, or 'auto'"
        problems.append(Problem("resources.gpus", what))
    if (typed(int, cpus) or 0) < 1:
        problems.append(Problem("resources.cpus", f"got {show(cpus)}; expected a whole number, at least 1"))
    return problems


def windows_for_all(where: str, batch_sizes: Iterable[int], gpus: float | str | None) -> Problem | None:
    """What is wrong with these batch sizes where a batch's windows are shared by so many GPUs."""
    least = min(batch_sizes)
    if not isinstance(gpus, int | float) or least >= gpus:
        return None
    what = f"got {least}; a trial's {gpus:.0f} GPUs share the windows of a batch: expected at least {gpus:.0f} of them"
    return Problem(where, f"{what}, or fewer resources.gpus")


def parse_overrides(texts: Iterable[str], names: Iterable[str]) -> dict[str, Any]:
    """The values of `--set field=value`, each read as the type of its field.

    Raises:
        SweepError: for all that are not of that form, name no field, or do not fit it.
    """
    names, values, problems = list(names), {}, []
    for text in texts:
        name, equals, given = text.partition("=")
        if not equals:
            problems.append(Problem(text, "expected field=value"))
        elif name not in names:
            problems.append(unknown(name, names))
        else:
            values[name], problem = field_value(name, _parsed(RULES.get(name), given))
            problems += [problem] if problem else []
    if problems:
        raise SweepError([replace(p, where=f"--set {p.where}") for p in problems], "the command line")
    return values


def _parsed(rule: Rule | None, text: str) -> object:
    """The text as the value that it spells for this rule, or as it is."""
    if rule is None:
        return text
    if rule.optional and text.lower() == "none":
        return None
    if rule.type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return rule.type(text)
    except ValueError:
        return text
