"""Definition of a sweep: its trials and how they are run. Standard library only."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from raylm.config import search_space, validation
from raylm.config.other_names import unknown_field, unknown_sweep_option
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import Problem, SweepError, unexpected_value

MAX_TRIALS = 10_000
"""Largest number of trials of a grid; more are taken for a mistake."""
REQUIRED_OPTIONS = {"name": "a name for the results folder", "space": "fields of TrialConfig"}
"""Options of a sweep without a default, and what each of them holds."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Trials to train, as a grid or a search, and how to run them.

    Raises:
        SweepError: If options, fields or values are invalid; lists all of them.
    """

    name: str
    """Name of the results folder: at most 64 letters, digits, `.`, `_` and `-`."""
    space: Mapping[str, Any] | Sequence[Mapping[str, Any]] | Callable[[Any], Mapping[str, Any] | None]
    """Fields of `TrialConfig`, each a value or `tune.grid_search([...])`; all combinations are trained. A list of
    spaces is their union. With `search`: one dict of values and distributions (`tune.choice`, `tune.loguniform`, ...),
    or a function that takes an Optuna trial, suggests fields, and returns the other ones."""
    search: Any = None
    """Search algorithm: `optuna` (its TPE sampler), `random`, an Optuna sampler, or a Ray Tune searcher. It minimizes
    the adjusted validation loss. None: train the whole grid."""
    num_samples: int | None = None
    """Number of trials of the search, those of earlier launches included. Required with `search`."""
    search_seed: int = 0
    """Seed of `optuna` and `random`. The seed of a trial is a field of its space."""
    points_to_evaluate: Sequence[Mapping[str, Any]] = ()
    """First trials of the search. Each gives values for some or all fields that the space leaves open."""
    scheduler: Any = None
    """Early stopping: `asha` stops trials that are not among the best third after 1/9 of an epoch, 1/3, 1, 3, and so
    on. A Ray Tune scheduler is used as it is. None: train every trial to its end."""
    time_budget_hours: float | None = None
    """Wall-clock limit per launch, in hours. Running trials are checkpointed; rerun the command to resume with a fresh
    budget."""
    seeds: Sequence[int] | None = None
    """Seeds with which each row of a grid is trained. The table shows the mean over them and its 95 % interval."""
    resources: Resources = Resources()
    """GPUs and CPU cores of each trial."""
    precision: str = "auto"
    """Arithmetic of the forward and backward pass: `float32`, `bfloat16`, `float16` on GPUs (weights stay float32), or
    `auto`: bfloat16 if the GPU or processor supports it, else float16 on GPUs that have it, else float32."""
    max_failures: int = 2
    """Number of times that a crashed trial is restarted from its latest checkpoint, per launch."""
    storage: str | None = None
    """Location of the results folders: a folder that all nodes see, or a bucket (`s3://bucket/path`,
    `gs://bucket/path`). `--storage` overrides it. None: `$RAYLM_STORAGE`, else `./runs`."""

    def __new__(cls, **kwargs: Any) -> Sweep:
        """Report unknown and missing options together with all other problems; Python would stop at the first."""
        known = [field.name for field in fields(cls)]
        field_names = [field.name for field in fields(TrialConfig)]
        problems = [unknown_sweep_option(name, known, field_names) for name in kwargs if name not in known]
        problems += [
            Problem(name, f"is missing; expected {expected}")
            for name, expected in REQUIRED_OPTIONS.items()
            if name not in kwargs
        ]
        if kwargs and problems:  # copy and pickle call this without arguments
            raise SweepError(problems + _check_sweep({name: kwargs[name] for name in kwargs if name in known}))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if problems := _check_sweep({field.name: getattr(self, field.name) for field in fields(self)}):
            raise SweepError(problems)
        object.__setattr__(self, "max_failures", int(self.max_failures))
        object.__setattr__(self, "search_seed", int(self.search_seed))
        object.__setattr__(self, "storage", None if self.storage is None else str(self.storage))

    def trials(self) -> list[TrialConfig]:
        """Return the distinct trials of a grid, in the order of the spaces; the last field varies fastest."""
        seeds: list[dict[str, Any]] = [{"seed": seed} for seed in self.seeds] if self.seeds is not None else [{}]
        points = [point for space in _list_spaces(self.space) for point in _iter_grid(space)]
        configs = [TrialConfig(**point, **seed) for point in points for seed in seeds]
        return list({config.id: config for config in configs}.values())

    @property
    def search_name(self) -> str | None:
        """Name of the search algorithm: `search` itself, or the class of the object. None for a grid."""
        return self.search if self.search is None or isinstance(self.search, str) else type(self.search).__name__

    @property
    def grid_size(self) -> int:
        """Number of combinations of a grid, duplicates included."""
        return _count_grid(self.space, self.seeds)

    def override(self, values: Mapping[str, Any]) -> Sweep:
        """Return a copy of this sweep in which these fields have the given values in all trials."""
        seeds = None if "seed" in values else self.seeds
        if callable(self.space):
            function = self.space
            return dataclasses.replace(self, space=lambda trial: {**(function(trial) or {}), **values}, seeds=seeds)
        spaces = [{**space, **values} for space in _list_spaces(self.space)]
        points = [{k: v for k, v in point.items() if k not in values} for point in self.points_to_evaluate]
        space = spaces if isinstance(self.space, (list, tuple)) else spaces[0]
        return dataclasses.replace(self, space=space, seeds=seeds, points_to_evaluate=points)


# ---- grids --------------------------------------------------------------------------------------------------------


def _list_spaces(space: Any) -> Sequence[Mapping[str, Any]]:
    return [space] if isinstance(space, Mapping) else space


def _locate_spaces(space: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the spaces, each with its location in error messages: `space`, or `space[0]`, `space[1]`, ..."""
    if isinstance(space, Mapping):
        return [("space", space)]
    return [(f"space[{number}]", member) for number, member in enumerate(space)]


def _iter_grid(space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*map(search_space.list_values, space.values())):
        yield dict(zip(space, values, strict=True))


def _count_grid(space: Any, seeds: Sequence[int] | None) -> int:
    return sum(map(search_space.count_combinations, _list_spaces(space))) * (1 if seeds is None else len(seeds))


# ---- validation ---------------------------------------------------------------------------------------------------


def _check_sweep(options: Mapping[str, Any]) -> list[Problem]:
    """Return the problems of all options of a sweep. Options that are not given are valid."""
    problems = validation.check_sweep_options(options) + search_space.check_search_options(options)
    if "space" not in options:
        return problems
    space, is_search = options["space"], options.get("search") is not None
    if problem := _check_space_type(space, is_search):
        return [*problems, problem]
    if callable(space):
        return problems  # the points that it returns are checked before a launch
    for location, member in _locate_spaces(space):
        problems += _check_space(member, location, is_search)
    if options.get("seeds") is not None and any("seed" in member for member in _list_spaces(space)):
        problems.append(Problem("seeds", "cannot be combined with a seed in the space; remove one of them"))
    return problems or _check_whole_space(space, options, is_search)


def _check_space_type(space: Any, is_search: bool) -> Problem | None:
    """Return a problem if the space is not a dict, a list of dicts or a function, as the kind of sweep requires."""
    if not is_search and callable(space):
        return Problem("space", "a function requires search='optuna' or search='random'")
    if is_search:
        if not callable(space) and not isinstance(space, Mapping):
            return unexpected_value("space", space, "one dict of fields, or a function, as the space of a search")
        if not search_space.is_search_space(space) and not _find_unsearchable(space):
            return Problem("space", "has no field to search; expected a distribution, such as tune.choice([...])")
        return None
    if not isinstance(space, (Mapping, list, tuple)) or not all(isinstance(s, Mapping) for s in _list_spaces(space)):
        return unexpected_value("space", space, "a dict of fields, or a list of dicts")
    return None if _list_spaces(space) else Problem("space", "is empty; expected at least one dict of fields")


def _find_unsearchable(space: Any) -> list[str]:
    """Return the fields of a search's space with values that are no distribution, such as a grid: each is reported."""
    items = space.items() if isinstance(space, Mapping) else []
    return [name for name, value in items if search_space.check_field_space(name, value, is_search=True)]


def _check_space(space: Mapping[str, Any], location: str, is_search: bool) -> list[Problem]:
    """Return the problems of one space: of each field by itself, else of the combinations of their values."""
    if not space:
        return [Problem(location, "is empty; expected fields such as model, context_length or batch_size")]
    defaults = {field.name: field.default for field in fields(TrialConfig)}
    problems: list[Problem | None] = []
    for name, value in space.items():
        if name not in defaults:
            problems.append(unknown_field(name, defaults, [field.name for field in fields(Sweep)]))
        elif problem := search_space.check_field_space(name, value, is_search=is_search):
            problems.append(problem)
        else:
            problems += [validation.validate_field(name, choice)[1] for choice in search_space.list_values(value)]
    if not any(problems) and search_space.count_combinations(space) <= MAX_TRIALS:  # larger grids are refused later
        combined = (validation.check_combination({**defaults, **point}) for point in _iter_grid(space))
        problems = list(dict.fromkeys(itertools.chain.from_iterable(combined)))
    return [problem.nested_in(location) for problem in problems if problem]


def _check_whole_space(space: Any, options: Mapping[str, Any], is_search: bool) -> list[Problem]:
    """Return the problems of valid spaces with the GPUs per trial, else with the size of the grid, else with ASHA."""
    gpus = getattr(options.get("resources"), "gpus", None)
    problems = [
        validation.check_batch_sizes(
            f"{location}.batch_size",
            search_space.list_values(member.get("batch_size", TrialConfig.batch_size)),
            gpus,
        )
        for location, member in _locate_spaces(space)
    ]
    if any(problems):
        return [problem for problem in problems if problem]
    if not is_search and (size := _count_grid(space, options.get("seeds"))) > MAX_TRIALS:
        return [Problem("space", f"the grid has {size:,} trials; expected at most {MAX_TRIALS:,}")]
    if options.get("scheduler") == "asha" and not any(map(_has_intermediate_evals, _list_spaces(space))):
        problem = "every trial is evaluated only at its end, where asha has nothing to stop"
        return [Problem("space", f"{problem}; expected evals_per_epoch of at least 2 (9 reaches every rung)")]
    return []


def _has_intermediate_evals(space: Mapping[str, Any]) -> bool:
    """Return whether some trial of a space is evaluated before its end."""
    return any(max(search_space.list_values(space.get(name, 1))) > 1 for name in ("epochs", "evals_per_epoch"))
