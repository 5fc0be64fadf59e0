"""Search spaces and search options: grids, Tune distributions, searchers, schedulers, and their validation.

Objects of Ray and Optuna are recognized by module name and methods, so that neither is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raylm.config import validation
from raylm.errors import Problem, format_suggestion, safe_repr, unexpected_value

SEARCHES = ("optuna", "random")
SCHEDULERS = ("asha",)
MAX_SAMPLES = 10_000
"""Largest number of trials of a search; more are taken for a mistake."""
DISTRIBUTION_NAMES = "tune.choice, uniform, quniform, loguniform, randint, qrandint or lograndint"
REQUIRES_SEARCH = "requires search='optuna' or search='random'"


# ---- values of a field --------------------------------------------------------------------------------------------


def is_grid(value: object) -> bool:
    """Return whether a value was made by `tune.grid_search`."""
    return isinstance(value, dict) and set(value) == {"grid_search"}


def is_distribution(value: object) -> bool:
    """Return whether a value is a Tune distribution."""
    return type(value).__module__.startswith("ray.tune.search.sample")


def is_choice(value: object) -> bool:
    """Return whether a value was made by `tune.choice`."""
    return is_distribution(value) and type(value).__name__ == "Categorical"


def is_search_space(space: object) -> bool:
    """Return whether a space can be searched: a function, or a dict with at least one distribution."""
    return callable(space) or (isinstance(space, Mapping) and any(map(is_distribution, space.values())))


def list_values(value: object) -> list[Any]:
    """Return all values of a grid or choice, both ends of a range (inclusive), or the single value itself."""
    if is_grid(value):
        choices = value["grid_search"]  # type: ignore[index]
        return list(choices) if isinstance(choices, (list, tuple)) else []
    if not is_distribution(value):
        return [value]
    kind = type(value).__name__
    if kind == "Categorical":
        return list(value.categories)  # type: ignore[attr-defined]
    lower, upper = value.lower, value.upper  # type: ignore[attr-defined]
    if kind == "Float":  # its ends may be integers
        return [float(lower), float(upper)]
    inclusive = type(value.get_sampler()).__name__ == "Quantized"  # type: ignore[attr-defined]
    return [lower, upper if inclusive else upper - 1]


def count_combinations(space: Mapping[str, Any]) -> int:
    """Return the number of combinations of the fields' values. A range counts as its two ends."""
    total = 1
    for value in space.values():
        total *= len(list_values(value))
    return total


def check_field_space(name: str, value: object, *, is_search: bool) -> Problem | None:
    """Return a problem if a field's grid or distribution is malformed. Does not check the values in it."""
    if is_distribution(value):
        return _check_distribution(name, value, is_search)
    if (values := _list_several(value)) is not None:
        meant = f"tune.{'choice' if is_search else 'grid_search'}({safe_repr(values)})"
        return Problem(name, f"got {safe_repr(value)}; expected one value, or {meant} to try each")
    if not isinstance(value, dict):
        return None
    if {"min", "max"} <= set(value):  # as in sweeps of W&B
        meant = f"tune.uniform({safe_repr(value['min'])}, {safe_repr(value['max'])})"
        return unexpected_value(name, value, f"{meant} or tune.loguniform(...){'' if is_search else ', and a search'}")
    if not is_grid(value):
        return unexpected_value(name, value, "a value or tune.grid_search([...])")
    choices = value["grid_search"]
    if is_search:
        meant = f"tune.choice({safe_repr(choices)})"
        return Problem(name, f"got tune.grid_search({safe_repr(choices)}) in a search; expected {meant}")
    if not isinstance(choices, (list, tuple)):
        return Problem(name, f"got tune.grid_search({safe_repr(choices)}); expected a list of values")
    if not choices:
        return Problem(name, "the grid is empty; expected at least one value in tune.grid_search([...])")
    return None


def _list_several(value: object) -> list[Any] | None:
    """Return the values that a list, a NumPy array or W&B's `{"values": [...]}` holds; None for anything else."""
    if isinstance(value, dict) and set(value) == {"values"}:
        value = value["values"]
    if isinstance(value, (list, tuple, set, frozenset, range)):
        return list(value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 0) == 1:
        return list(value.tolist())  # type: ignore[attr-defined]
    return None


def _check_distribution(name: str, value: Any, is_search: bool) -> Problem | None:
    kind = type(value).__name__
    if not is_search:
        what = f"a Tune distribution ({kind}) {REQUIRES_SEARCH}; for a grid, expected tune.grid_search([...])"
        return Problem(name, what)
    if kind == "Categorical":
        return None if list(value.categories) else Problem(name, "the choice is empty; expected at least one value")
    if kind not in ("Float", "Integer"):
        return Problem(name, f"got a Tune distribution of type {kind}; expected {DISTRIBUTION_NAMES}")
    sampler = value.get_sampler()
    if type(sampler).__name__ == "Quantized" and type(sampler.sampler).__name__.endswith("LogUniform"):
        what = "got a quantized logarithmic range, which Optuna does not have"
        return Problem(name, f"{what}; expected {DISTRIBUTION_NAMES}")
    lower, upper = value.lower, value.upper
    if any(validation.coerce(float, end) is None for end in (lower, upper)) or not lower < upper:
        ends = f"{safe_repr(lower)} to {safe_repr(upper)}"
        return Problem(name, f"got a range from {ends}; expected two numbers, the lower first")
    return None


# ---- options of a search ------------------------------------------------------------------------------------------


def check_search_options(options: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of a sweep's search and scheduling options. Options that are not given are valid."""
    search = options.get("search")
    problems = _check_search(search) + _check_scheduler(options.get("scheduler")) + _check_numbers(options)
    if search is None:
        given = [name for name in ("num_samples", "points_to_evaluate") if not _is_unset(options.get(name))]
        problems += [Problem(name, REQUIRES_SEARCH) for name in given]
    else:
        problems += _check_searcher(options)
        if options.get("num_samples") is None:
            problems.append(Problem("num_samples", "is missing; expected the number of trials of the search"))
        if options.get("seeds") is not None:
            problems.append(Problem("seeds", "cannot be combined with search; set seed in the space instead"))
    return problems + _check_points(options)


def _check_search(search: object) -> list[Problem]:
    if search is None or _is_tune_searcher(search) or _has_methods(search, "sample_relative"):
        return []
    return _check_one_of("search", search, SEARCHES, "an Optuna sampler, a Ray Tune searcher")


def _check_scheduler(scheduler: object) -> list[Problem]:
    if scheduler is None:
        return []
    if not _has_methods(scheduler, "on_trial_result", "choose_trial_to_run"):
        return _check_one_of("scheduler", scheduler, SCHEDULERS, "a Ray Tune scheduler")
    if (kind := type(scheduler).__name__) in ("PopulationBasedTraining", "PopulationBasedTrainingReplay", "PB2"):
        what = f"{kind} is not supported: it changes hyperparameters during training"
        return [Problem("scheduler", f"{what}; expected 'asha' or a scheduler that only stops or pauses trials")]
    return []


def _check_one_of(name: str, value: object, choices: tuple[str, ...], objects: str) -> list[Problem]:
    if isinstance(value, str) and value in choices:
        return []
    hint = format_suggestion(value, choices) if isinstance(value, str) else ""
    return [unexpected_value(name, value, f"{', '.join(map(repr, choices))}, {objects}, or None{hint}")]


def _check_searcher(options: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of options that a Ray Tune searcher, given as an object, does not support."""
    if not _is_tune_searcher(search := options["search"]):
        return []
    problems = []
    if (kind := type(search).__name__) in ("ConcurrencyLimiter", "Repeater"):
        what = f"{kind} is not supported: raylm limits concurrency and repeats trials itself"
        problems.append(Problem("search", f"{what}; expected the searcher that it wraps"))
    if callable(options.get("space")):
        what = "a function requires 'optuna', 'random' or an Optuna sampler"
        problems.append(Problem("space", f"{what}; expected a dict of fields for a Ray Tune searcher"))
    if options.get("points_to_evaluate"):
        what = "is not supported with a Ray Tune searcher; pass the points to the searcher itself"
        problems.append(Problem("points_to_evaluate", what))
    return problems


def _check_numbers(options: Mapping[str, Any]) -> list[Problem]:
    problems = []
    samples = options.get("num_samples")
    if samples is not None and not 1 <= (validation.coerce(int, samples) or 0) <= MAX_SAMPLES:
        problems.append(unexpected_value("num_samples", samples, f"a whole number of trials from 1 to {MAX_SAMPLES:,}"))
    search_seed = options.get("search_seed", 0)
    if validation.validate_field("seed", search_seed)[1]:
        problems.append(unexpected_value("search_seed", search_seed, validation.FIELD_RULES["seed"].expected))
    if (hours := options.get("time_budget_hours")) is not None:
        number = validation.coerce(float, hours)
        if number is None or not (math.isfinite(number) and number > 0):
            problems.append(unexpected_value("time_budget_hours", hours, "a number of hours above 0"))
    return problems


def _check_points(options: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of the points with which a search begins."""
    points, space = options.get("points_to_evaluate", ()), options.get("space")
    if not isinstance(points, (list, tuple)) or not all(isinstance(point, Mapping) for point in points):
        return [unexpected_value("points_to_evaluate", points, "a list of dicts of fields")]
    if not isinstance(space, Mapping):
        return []
    problems = []
    for number, point in enumerate(points):
        for name, value in point.items():
            location = f"points_to_evaluate[{number}].{name}"
            if name not in space:
                hint = format_suggestion(str(name), map(str, space))
                problems.append(Problem(location, f"is not in the space{hint}"))
            elif check_field_space(name, space[name], is_search=True):
                continue  # reported as a problem of the space
            elif not _contains(value, space[name]):
                what = f"got {safe_repr(value)}, which is not in the space; expected {_describe_domain(space[name])}"
                problems.append(Problem(location, what))
    return problems


def _is_unset(value: object) -> bool:
    """Return whether an option is None or empty. NumPy arrays count as set: they have no truth value."""
    return value is None or (isinstance(value, (list, tuple)) and not value)


def _contains(value: object, domain: object) -> bool:
    try:
        if is_distribution(domain) and not is_choice(domain):
            low, high = list_values(domain)
            return isinstance(value, (int, float)) and bool(low <= value <= high)
        return value in list_values(domain)
    except Exception:  # values that cannot be compared, such as arrays or too deeply nested lists
        return False


def _describe_domain(domain: object) -> str:
    values = list_values(domain)
    if is_distribution(domain) and not is_choice(domain):
        return f"{safe_repr(values[0])} to {safe_repr(values[1])}"
    return f"one of {', '.join(map(safe_repr, values))}"


def _is_tune_searcher(value: object) -> bool:
    return _has_methods(value, "suggest", "on_trial_complete")


def _has_methods(value: object, *methods: str) -> bool:
    return not isinstance(value, type) and all(callable(getattr(value, method, None)) for method in methods)
