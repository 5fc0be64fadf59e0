"""Validation of trials and sweeps: one rule per field; all problems are reported at once."""

from __future__ import annotations

import difflib
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raylm.config.catalog import DATASETS, MODELS, max_positions, read_model_config
from raylm.config.dataset import DATASET_ID_PATTERN, DATASET_OPTIONS, HUB_ID_PATTERN, is_path, local_paths
from raylm.errors import Problem, format_suggestion, safe_repr, unexpected_value
from raylm.numerics import HALF_PRECISIONS

BUCKET_URI_PATTERN = re.compile(r"(s3|gs)://[a-z0-9][a-z0-9._-]{1,61}[a-z0-9](/(?!\.\.?(/|$))[\w.=+-]+)*/?")
"""URI of a bucket, or of a prefix in it."""
SWEEP_NAME_PATTERN = re.compile(r"[A-Za-z0-9](?!.*\.\.)[A-Za-z0-9._-]{0,63}")
OPTIMIZERS = ("adafactor", "adamw")
DOCUMENT_KINDS = ("line", "blank-line", "file")
LR_SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("auto", "float32", *HALF_PRECISIONS)
MAX_SEEDS = 10_000
"""Largest number of seeds of a sweep; more are taken for a mistake."""
MAX_GPUS = 1000
"""Largest number of GPUs per trial; more are taken for a mistake."""


# ---- fields of a trial --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FieldRule:
    """Type and range of a field's values."""

    value_type: type
    expected: str
    """Description of the valid values, for error messages."""
    is_valid: Callable[[Any], bool] = lambda value: True
    """Condition on a value that has the right type."""
    optional: bool = False
    """True if None is valid too."""


def _is_name(value: str) -> bool:
    return bool(value.strip()) and _is_unicode(value)


FIELD_RULES: dict[str, FieldRule] = {
    "context_length": FieldRule(int, "a whole number of tokens, at least 2", lambda v: 2 <= v <= 10**9),
    "batch_size": FieldRule(int, "a whole number from 1 to 1,000,000", lambda v: 1 <= v <= 1_000_000),
    "epochs": FieldRule(int, "a whole number from 1 to 10,000", lambda v: 1 <= v <= 10_000),
    "learning_rate": FieldRule(float, "a finite number above 0", lambda v: math.isfinite(v) and v > 0),
    "warmup_ratio": FieldRule(float, "a number from 0 to 1", lambda v: 0 <= v <= 1),
    "weight_decay": FieldRule(float, "a finite number, at least 0", lambda v: math.isfinite(v) and v >= 0),
    "max_grad_norm": FieldRule(float, "a finite number, at least 0", lambda v: math.isfinite(v) and v >= 0),
    "dropout": FieldRule(float, "a number, at least 0 and below 1, or None", lambda v: 0 <= v < 1, optional=True),
    "seed": FieldRule(int, "a whole number from 0 to 4,294,967,295", lambda v: 0 <= v < 2**32),
    "pretrained": FieldRule(bool, "True or False"),
    "max_train_tokens": FieldRule(
        int, "a whole number of tokens, at least 1, or None", lambda v: 1 <= v <= 10**18, True
    ),
    "evals_per_epoch": FieldRule(int, "a whole number from 1 to 1,000", lambda v: 1 <= v <= 1000),
    "text_column": FieldRule(str, "the name of a column, or None", _is_name, optional=True),
    "documents": FieldRule(
        str, f"one of {', '.join(DOCUMENT_KINDS)}, or None", lambda v: v in DOCUMENT_KINDS, optional=True
    ),
    "train_split": FieldRule(str, "the name of a split, or None", _is_name, optional=True),
    "validation_split": FieldRule(str, "the name of a split, or None", _is_name, optional=True),
    "max_documents": FieldRule(
        int, "a whole number of documents, at least 2, or None", lambda v: 2 <= v <= 10**18, True
    ),
}
FIELD_CHOICES: dict[str, tuple[str, ...]] = {"optimizer": OPTIMIZERS, "lr_schedule": LR_SCHEDULES}


def validate_field(name: str, value: object) -> tuple[Any, Problem | None]:
    """Return a field's value, converted to the field's type, and its problem or None."""
    if isinstance(value, str):
        value = str(value)  # NumPy's strings too
    if name in FIELD_CHOICES:
        return value, check_choice(name, value, FIELD_CHOICES[name])
    if name in ("dataset", "model"):
        if not isinstance(value, str) or not value.strip():
            return value, unexpected_value(name, value, "a name")
        if not _is_unicode(value):
            return value, unexpected_value(name, value, "a name in UTF-8, which reports can show; rename the file")
        return value, _check_dataset(value) if name == "dataset" else _check_model(value)
    rule = FIELD_RULES[name]
    if value is None and rule.optional:
        return value, None
    converted = coerce(rule.value_type, value)
    if converted is None or not rule.is_valid(converted):
        return value, unexpected_value(name, value, rule.expected)
    return converted, None


def is_valid_field(name: str, value: object) -> bool:
    """Return whether a saved value is valid for a field. Datasets and models may be any text: files may have moved."""
    return validate_field(name, value)[1] is None if name in FIELD_RULES else isinstance(value, str)


def coerce(target_type: type, value: object) -> Any:
    """Return a value as a bool, int, float or str, or None if it is of another kind. Accepts NumPy's scalars.

    Integers are valid floats, but floats are not valid integers, and only bools are valid bools.
    """
    if (type(value).__module__, type(value).__name__) in (("numpy", "bool"), ("numpy", "bool_")):
        value = bool(value)
    if target_type is str:
        return value if isinstance(value, str) else None
    if target_type is bool or isinstance(value, bool):
        return value if target_type is bool and isinstance(value, bool) else None
    try:
        if target_type is int and isinstance(value, numbers.Integral):
            return int(value)
        if target_type is float and isinstance(value, numbers.Real):
            return float(value) + 0.0  # -0.0 becomes 0.0, so that both have the same trial id
    except OverflowError:
        return None
    return None


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> Problem | None:
    """Return a problem unless the value is one of the choices."""
    if isinstance(value, str) and value in choices:
        return None
    hint = format_suggestion(value, choices) if isinstance(value, str) else ""
    return unexpected_value(name, value, f"one of {', '.join(choices)}{hint}")


def _check_dataset(name: str) -> Problem | None:
    if name in DATASETS or local_paths(name):
        return None
    if is_path(name):
        what = f"got {safe_repr(name)}; there is no such file{_place(name)}{_suggest_files(name)}"
        return Problem("dataset", what)
    if DATASET_ID_PATTERN.fullmatch(name):
        return None
    expected = f"one of {', '.join(DATASETS)}, a Hub id owner/name, or the path of a file or folder"
    return unexpected_value("dataset", name, f"{expected}{format_suggestion(name, DATASETS)}")


def _place(name: str) -> str:
    """Return the folder that a relative path is looked up in, for messages."""
    if Path(name).is_absolute() or name.startswith("~"):
        return ""
    try:
        return f" in {Path.cwd()}"
    except OSError:
        return " in the working folder, which is gone"


def _suggest_files(name: str) -> str:
    """Return `; did you mean 'X'?` for the most similar file of a path's folder, or an empty string."""
    path = Path(name)
    try:
        names = {entry.name.lower(): entry.name for entry in path.expanduser().parent.iterdir()}
    except (OSError, RuntimeError, ValueError):
        return f", nor the folder {str(path.parent)!r}"
    close = difflib.get_close_matches(path.name.lower(), names, n=1, cutoff=0.6)
    return f"; did you mean {str(path.parent / names[close[0]])!r}?" if close else ""


def _check_model(name: str) -> Problem | None:
    if name in MODELS:
        return None
    if _is_file(name, "config.json"):
        is_object = read_model_config(name) is not None
        return None if is_object else Problem("model", f"{name}/config.json is not a JSON object")
    if _is_folder(name):
        return Problem("model", f"the folder {name!r} has no config.json")
    if HUB_ID_PATTERN.fullmatch(name):
        return None
    expected = f"one of {', '.join(MODELS)}, a Hub id owner/name, or a folder with config.json"
    return unexpected_value("model", name, f"{expected}{format_suggestion(name, MODELS)}")


def _is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8. Paths whose bytes are not UTF-8 have lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _is_file(*parts: str) -> bool:
    try:
        return Path(*parts).is_file()
    except (OSError, ValueError):  # no file can have this name
        return False


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def check_combination(point: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of a combination of fields, each valid by itself."""
    model, dataset, problems = point["model"], point["dataset"], []
    longest = MODELS[model].shape.max_positions if model in MODELS else max_positions(read_model_config(model) or {})
    if longest is not None and point["context_length"] > longest:  # None: known only to the Hub
        problems.append(
            Problem("context_length", f"got {point['context_length']}; {model} takes at most {longest} tokens")
        )
    for name in DATASET_OPTIONS if dataset in DATASETS else ():
        if point.get(name) is not None:
            problems.append(Problem(name, f"got {point[name]!r}; the text of {dataset} is fixed, expected None"))
    return problems


# ---- options of a sweep -------------------------------------------------------------------------------------------


def check_sweep_options(options: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of a sweep's options other than space and search. Options that are not given are valid."""
    problems: list[Problem | None] = []
    if "name" in options:
        problems.append(_check_name(options["name"]))
    if options.get("seeds") is not None:
        problems += _check_seeds(options["seeds"])
    if "precision" in options:
        problems.append(check_choice("precision", options["precision"], PRECISIONS))
    failures = options.get("max_failures", 0)
    if coerce(int, failures) is None or not 0 <= failures <= 1000:
        problems.append(unexpected_value("max_failures", failures, "a whole number from 0 to 1,000"))
    if options.get("storage") is not None:
        problems.append(check_storage(options["storage"]))
    resources = options.get("resources")
    if "resources" in options and not (hasattr(resources, "gpus") and hasattr(resources, "cpus")):
        problems.append(unexpected_value("resources", resources, "raylm.Resources(gpus=..., cpus=...)"))
    return [problem for problem in problems if problem]


def _check_name(name: object) -> Problem | None:
    if isinstance(name, str) and SWEEP_NAME_PATTERN.fullmatch(name):
        return None
    expected = "at most 64 letters, digits, '.', '_' and '-', starting with a letter or digit, without '..'"
    return unexpected_value("name", name, f"a folder name: {expected}")


def _check_seeds(seeds: Any) -> list[Problem]:
    if not isinstance(seeds, (list, tuple, range)) or not 0 < len(seeds) <= MAX_SEEDS:
        return [unexpected_value("seeds", seeds, f"1 to {MAX_SEEDS:,} different whole numbers, as in (0, 1, 2)")]
    if invalid := [problem for seed in seeds if (problem := validate_field("seed", seed)[1])]:
        return [replace(problem, location="seeds") for problem in invalid]
    if len(set(seeds)) != len(seeds):
        return [unexpected_value("seeds", seeds, "different whole numbers, as in (0, 1, 2)")]
    return []


def check_storage(uri: object) -> Problem | None:
    """Return a problem unless a value is a folder's path or a bucket's URI. Does not access the storage."""
    expected = "the path of a folder, or s3://bucket/path or gs://bucket/path"
    if not isinstance(uri, (str, os.PathLike)) or not str(uri).strip() or "\0" in str(uri):
        return unexpected_value("storage", uri, expected)
    if "://" in str(uri):
        if BUCKET_URI_PATTERN.fullmatch(str(uri)):
            return None
        if "@" in str(uri):  # may contain credentials: never show the URI
            what = f"got a URI with an '@'; expected {expected}; set credentials in environment variables"
            return Problem("storage", what)
        return unexpected_value("storage", uri, expected)
    try:
        os.fsencode(Path(uri).expanduser())
        Path(uri).expanduser().exists()
    except (OSError, RuntimeError, ValueError) as error:
        return unexpected_value("storage", uri, f"{expected}: {error}")
    return None


def check_resources(gpus: object, cpus: object) -> list[Problem]:
    """Return the problems of a trial's GPUs and CPU cores."""
    problems = []
    amount = 0.0 if gpus is None or gpus == "auto" else coerce(float, gpus)
    if amount is None or not (0 <= amount <= 1 or amount in range(2, MAX_GPUS + 1)):
        expected = f"0, a fraction of one GPU, a whole number of GPUs up to {MAX_GPUS:,}, 'auto', or None"
        problems.append(unexpected_value("resources.gpus", gpus, expected))
    if (coerce(int, cpus) or 0) < 1:
        problems.append(unexpected_value("resources.cpus", cpus, "a whole number, at least 1"))
    return problems


def check_batch_sizes(location: str, batch_sizes: Iterable[int], gpus: float | str | None) -> Problem | None:
    """Return a problem if a batch size is smaller than the number of GPUs, each of which needs at least one window."""
    smallest = min(batch_sizes)
    if not isinstance(gpus, int | float) or smallest >= gpus:
        return None
    what = f"got {smallest}, but a trial uses {gpus:.0f} GPUs; expected at least {gpus:.0f}, or fewer resources.gpus"
    return Problem(location, what)
