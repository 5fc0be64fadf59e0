"""Spaces and how they are searched: what stands for a field in them, a value, a grid or one of Tune's distributions.

Objects of Ray and Optuna are told by what they can do, so that neither is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from raylm.config import validation
from raylm.errors import Problem, format_suggestion, safe_repr

SEARCHES = ("optuna", "random")
SCHEDULERS = ("asha",)
MAX_SAMPLES = 10_000
DISTRIBUTION_NAMES = "tune.choice, uniform, quniform, loguniform, randint, qrandint or lograndint"


def is_grid(value: object) -> bool:
    """Whether this is what `tune.grid_search` returns."""
    return isinstance(value, dict) and set(value) == {"grid_search"}


def is_distribution(value: object) -> bool:
    """Whether this is one of Tune's distributions. Told by its module, so that Ray need not be imported."""
    return type(value).__module__.startswith("ray.tune.search.sample")


def is_choice(value: object) -> bool:
    """Whether this is a distribution over some values."""
    return is_distribution(value) and type(value).__name__ == "Categorical"


def is_search_space(space: object) -> bool:
    """Whether a space is one for a search: a function, or a dict with a distribution in it."""
    return callable(space) or (isinstance(space, Mapping) and any(map(is_distribution, space.values())))


def check_field_space(name: str, value: object, *, is_search: bool) -> Problem | None:
    """What is wrong with what stands for a field, its values aside."""
    if is_distribution(value):
        return _check_distribution(name, value, is_search)
    if not isinstance(value, dict):
        return None
    if not is_grid(value):
        return Problem(name, f"got {safe_repr(value)}; expected a value or tune.grid_search([...])")
    values = value["grid_search"]
    if is_search:
        return Problem(name, f"got tune.grid_search({safe_repr(values)}) in a search; expected tune.choice([...])")
    if not isinstance(values, (list, tuple)):
        return Problem(name, f"got tune.grid_search({safe_repr(values)}); expected a list of values in it")
    if not values:
        return Problem(name, "the grid is empty; expected at least one value in tune.grid_search([...])")
    return None


def _check_distribution(name: str, value: Any, is_search: bool) -> Problem | None:
    kind = type(value).__name__
    if not is_search:
        hint = "for a grid give the values, as tune.grid_search([...]); for a search say search='optuna' or 'random'"
        return Problem(name, f"got a distribution of Tune ({kind}); {hint}")
    if kind == "Categorical":
        return None if list(value.categories) else Problem(name, "the choice is empty; expected at least one value")
    if kind not in ("Float", "Integer"):
        return Problem(name, f"got {kind} of Tune; expected {DISTRIBUTION_NAMES}")
    sampler = value.get_sampler()
    if type(sampler).__name__ == "Quantized" and type(sampler.sampler).__name__.endswith("LogUniform"):
        return Problem(name, f"got a quantised logarithmic range; Optuna has none; expected {DISTRIBUTION_NAMES}")
    if (
        any(validation.coerce(float, end) is None for end in (value.lower, value.upper))
        or not value.lower < value.upper
    ):
        ends = f"{safe_repr(value.lower)} to {safe_repr(value.upper)}"
        return Problem(name, f"got a range from {ends}; expected two numbers, the lower first")
    return None


def list_values(value: object) -> list[Any]:
    """What a field can be: all values of a grid or a choice, both ends of a range, or the value given."""
    if is_grid(value):
        named = value["grid_search"]  # type: ignore[index]
        return list(named) if isinstance(named, (list, tuple)) else []
    if not is_distribution(value):
        return [value]
    kind = type(value).__name__
    if kind == "Categorical":
        return list(value.categories)  # type: ignore[attr-defined]
    lower, upper = value.lower, value.upper  # type: ignore[attr-defined]
    if kind == "Float":  # it may have been given whole numbers
        return [float(lower), float(upper)]
    inclusive = type(value.get_sampler()).__name__ == "Quantized"  # type: ignore[attr-defined]
    return [lower, upper if inclusive else upper - 1]


def count_combinations(space: Mapping[str, Any]) -> int:
    """Combinations of all that the fields can be, the ends alone of ranges."""
    total = 1
    for value in space.values():
        total *= len(list_values(value))
    return total


# ---- the options of a search --------------------------------------------------------------------------------------


def check_search_options(options: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the options of a sweep on search and scheduling; those not given are right."""
    search, scheduler = options.get("search"), options.get("scheduler")
    problems = []
    if (
        search is not None
        and not _has_methods(search, "suggest", "on_trial_complete")
        and not _has_methods(search, "sample_relative")
    ):
        problems += _check_one_of("search", search, SEARCHES, "a sampler of Optuna, or a searcher of Ray Tune")
    if scheduler is not None and not _has_methods(scheduler, "on_trial_result", "choose_trial_to_run"):
        problems += _check_one_of("scheduler", scheduler, SCHEDULERS, "a scheduler of Ray Tune")
    elif type(scheduler).__name__ in ("PopulationBasedTraining", "PopulationBasedTrainingReplay", "PB2"):
        what = f"got {type(scheduler).__name__}, which changes trials on their way; a row stands for one trial"
        problems.append(Problem("scheduler", what))
    problems += _check_numbers(options)
    if search is None:
        lonely = [name for name in ("num_samples", "points_to_evaluate") if not _is_unset(options.get(name))]
        problems += [Problem(name, "is for a search; say search='optuna' or 'random' too") for name in lonely]
    else:
        problems += _check_searcher(options)
        if options.get("num_samples") is None:
            problems.append(Problem("num_samples", "is missing; a search needs the number of its trials"))
        if options.get("seeds") is not None:
            problems.append(Problem("seeds", "and a search; expected one of them, or a seed in the space"))
    return problems + _check_points(options)


def _check_searcher(options: Mapping[str, Any]) -> list[Problem]:
    """What a searcher of Ray Tune, given as an object, cannot do."""
    if not _has_methods(search := options["search"], "suggest", "on_trial_complete"):
        return []
    problems = []
    if type(search).__name__ in ("ConcurrencyLimiter", "Repeater"):
        what = f"got {type(search).__name__}; expected the searcher in it: raylm limits and repeats by itself"
        problems.append(Problem("search", what))
    if callable(options.get("space")):
        problems.append(Problem("space", "is a function, which only Optuna can ask; expected a dict of fields"))
    if options.get("points_to_evaluate"):
        problems.append(Problem("points_to_evaluate", "is for Optuna; give them to the searcher itself"))
    return problems


def _check_one_of(name: str, value: object, choices: tuple[str, ...], alternatives: str) -> list[Problem]:
    if isinstance(value, str) and value in choices:
        return []
    hint = format_suggestion(value, choices) if isinstance(value, str) else ""
    return [
        Problem(
            name, f"got {safe_repr(value)}; expected {', '.join(map(repr, choices))}, {alternatives}, or None{hint}"
        )
    ]


def _check_numbers(options: Mapping[str, Any]) -> list[Problem]:
    problems = []
    samples = options.get("num_samples")
    if samples is not None and not 1 <= (validation.coerce(int, samples) or 0) <= MAX_SAMPLES:
        what = f"got {safe_repr(samples)}; expected a whole number of trials from 1 to {MAX_SAMPLES:,}"
        problems.append(Problem("num_samples", what))
    if validation.validate_field("seed", seed := options.get("search_seed", 0))[1]:
        problems.append(
            Problem("search_seed", f"got {safe_repr(seed)}; expected {validation.FIELD_RULES['seed'].expected}")
        )
    if (hours := options.get("time_budget_hours")) is not None:
        number = validation.coerce(float, hours)
        if number is None or not (math.isfinite(number) and number > 0):
            problems.append(Problem("time_budget_hours", f"got {safe_repr(hours)}; expected a number of hours above 0"))
    return problems


def _check_points(options: Mapping[str, Any]) -> list[Problem]:
    """What is wrong with the points that a search begins with."""
    points, space = options.get("points_to_evaluate", ()), options.get("space")
    if not isinstance(points, (list, tuple)) or not all(isinstance(point, Mapping) for point in points):
        return [Problem("points_to_evaluate", f"got {safe_repr(points)}; expected a list of dicts of fields")]
    if not isinstance(space, Mapping):
        return []
    problems = []
    for number, point in enumerate(points):
        where = f"points_to_evaluate[{number}]"
        for name, value in point.items():
            if name in space and check_field_space(name, space[name], is_search=True):
                continue  # told of the space
            if name not in space:
                hint = format_suggestion(str(name), map(str, space))
                problems.append(Problem(f"{where}.{name}", f"is not in the space{hint}"))
            elif not _contains(value, space[name]):
                what = (
                    f"got {safe_repr(value)}, which the space does not hold; expected {_describe_domain(space[name])}"
                )
                problems.append(Problem(f"{where}.{name}", what))
    return problems


def _is_unset(value: object) -> bool:
    """Whether an option is left at its default; an array of NumPy has no truth of its own."""
    return value is None or (isinstance(value, (list, tuple)) and not value)


def _contains(value: object, domain: object) -> bool:
    try:
        if is_distribution(domain) and not is_choice(domain):
            low, high = list_values(domain)
            return isinstance(value, (int, float)) and bool(low <= value <= high)
        return value in list_values(domain)
    except Exception:  # arrays, lists too deep: what cannot be compared
        return False


def _describe_domain(domain: object) -> str:
    found = list_values(domain)
    if is_distribution(domain) and not is_choice(domain):
        return f"{safe_repr(found[0])} to {safe_repr(found[1])}"
    return f"one of {', '.join(map(safe_repr, found))}"


def _has_methods(value: object, *methods: str) -> bool:
    return not isinstance(value, type) and all(callable(getattr(value, method, None)) for method in methods)
