"""What a user writes: trials and sweeps, and every check of them. Standard library only; no torch, no hub, no Ray."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from raylm.config import search_space, validation
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import Problem, SweepError, safe_repr, unknown_name_problem

MAX_TRIALS = 10_000
"""A sweep of more trials than this is taken for a slip of the pen."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A set of trials and how to run them.

    Raises:
        SweepError: naming everything that is wrong, at once.
    """

    name: str
    """Names the results folder: letters, digits, `.`, `_`, `-`."""
    space: Mapping[str, Any] | Sequence[Mapping[str, Any]] | Callable[[Any], Mapping[str, Any] | None]
    """Fields of `TrialConfig`, each a value or `tune.grid_search([...])`. A list of spaces is their union. With
    `search`, one space of values and `tune.choice`, `tune.loguniform`, ..., or a define-by-run function of Optuna."""
    search: Any = None
    """None: the grid. `optuna`: its TPE sampler; `random`; or a sampler of Optuna or a searcher of Ray Tune, as an
    object. Searches for the lowest adj val loss."""
    num_samples: int | None = None
    """Trials of the search, those of earlier launches counted."""
    search_seed: int = 0
    """Seeds what `optuna` and `random` suggest; the seed of a trial is a field of it."""
    points_to_evaluate: Sequence[Mapping[str, Any]] = ()
    """Trials that the search begins with, each by some or all of the fields that the space leaves open."""
    scheduler: Any = None
    """None: every trial is trained to its end. `asha`: those that are not among the best third after a ninth of an
    epoch, a third, one, three, ... are stopped. Or a scheduler of Ray Tune, as an object."""
    time_budget_hours: float | None = None
    """After this time of a launch no trial goes on; the same command goes on later, with the same budget again."""
    seeds: Sequence[int] | None = None
    """Each row once with each of these seeds; the table shows their mean and its 95 % interval."""
    resources: Resources = Resources()
    """What one trial gets of the cluster."""
    precision: str = "auto"
    """Arithmetic of the forward and backward pass: `float32`, `bfloat16` (weights stay float32), or `auto`:
    bfloat16 on GPUs that have it, else float32."""
    max_failures: int = 2
    """How often a crashed trial is started again from its latest checkpoint."""
    storage: str | None = None
    """Where the results folders are: a folder that all nodes see, or a part of a bucket (`s3://bucket/path`, `gs://...`).
    `--storage` goes before it; None: `$RAYLM_STORAGE`, else `./runs`."""

    def __new__(cls, **kwargs: Any) -> Sweep:
        """Names unknown options and everything else that is wrong in one error, where Python would stop at one."""
        known = [field.name for field in fields(cls)]
        problems = [unknown_name_problem(name, known) for name in kwargs if name not in known]
        problems += [Problem(name, "is missing") for name in ("name", "space") if name not in kwargs]
        if kwargs and problems:  # copying an object calls this without any
            raise SweepError(problems + _check_sweep({n: v for n, v in kwargs.items() if n in known}))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if problems := _check_sweep({field.name: getattr(self, field.name) for field in fields(self)}):
            raise SweepError(problems)
        object.__setattr__(self, "max_failures", int(self.max_failures))
        object.__setattr__(self, "search_seed", int(self.search_seed))
        object.__setattr__(self, "storage", None if self.storage is None else str(self.storage))

    def trials(self) -> list[TrialConfig]:
        """All trials of a grid in the order of the file, the last field of a space varying fastest, each once."""
        seeds: list[dict[str, Any]] = [{"seed": seed} for seed in self.seeds] if self.seeds is not None else [{}]
        points = [point for space in _list_spaces(self.space) for point in _iter_grid(space)]
        configs = [TrialConfig(**point, **seed) for point in points for seed in seeds]
        return list({config.id: config for config in configs}.values())

    @property
    def search_name(self) -> str | None:
        """What suggests its trials; None: they are a grid."""
        return self.search if self.search is None or isinstance(self.search, str) else type(self.search).__name__

    @property
    def grid_size(self) -> int:
        """How many rows the spaces of a grid name, repetitions counted."""
        return _grid_size(self.space, self.seeds)

    def override(self, values: Mapping[str, Any]) -> Sweep:
        """This sweep with some fields set for all of its trials, whatever its spaces say of them."""
        seeds = None if "seed" in values else self.seeds
        if callable(self.space):
            function = self.space
            return dataclasses.replace(self, space=lambda trial: {**(function(trial) or {}), **values}, seeds=seeds)
        changed = [{**space, **values} for space in _list_spaces(self.space)]
        points = [{k: v for k, v in point.items() if k not in values} for point in self.points_to_evaluate]
        space = changed if isinstance(self.space, (list, tuple)) else changed[0]
        return dataclasses.replace(self, space=space, seeds=seeds, points_to_evaluate=points)


def _list_spaces(space: Any) -> Sequence[Mapping[str, Any]]:
    return [space] if isinstance(space, Mapping) else space


def _grid_size(space: Any, seeds: Sequence[int] | None) -> int:
    return sum(map(search_space.count_combinations, _list_spaces(space))) * (1 if seeds is None else len(seeds))


def _iter_grid(space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*map(search_space.list_values, space.values())):
        yield dict(zip(space, values, strict=True))


def _check_sweep(options: Mapping[str, Any]) -> list[Problem]:
    problems = validation.check_sweep_options(options) + search_space.check_search_options(options)
    if "space" not in options:
        return problems
    space, searched = options["space"], options.get("search") is not None
    if problem := _check_space_type(space, searched):
        return [*problems, problem]
    if callable(space):
        return problems  # what it gives is looked at before anything starts
    for number, one in enumerate(_list_spaces(space)):
        problems += _check_space(one, "space" if isinstance(space, Mapping) else f"space[{number}]", searched)
    seeds = options.get("seeds")
    if seeds is not None and any("seed" in one for one in _list_spaces(space)):
        problems.append(Problem("seeds", "and a seed in the space; expected one of them"))
    gpus = getattr(options.get("resources"), "gpus", None)
    for number, one in enumerate([] if problems else _list_spaces(space)):
        where = "space" if isinstance(space, Mapping) else f"space[{number}]"
        sizes = search_space.list_values(one.get("batch_size", TrialConfig.batch_size))
        problem = validation.check_batch_sizes("batch_size", sizes, gpus)
        problems += [problem.nested_in(where)] if problem else []
    if not problems and not searched and (size := _grid_size(space, seeds)) > MAX_TRIALS:
        problems.append(Problem("space", f"makes {size:,} trials; a sweep has at most {MAX_TRIALS:,}"))
    if (
        not problems
        and options.get("scheduler") == "asha"
        and not any(map(_has_intermediate_evals, _list_spaces(space)))
    ):
        what = "evaluates each trial but once, at its end; asha needs evals_per_epoch of 2 at least, as 9"
        problems.append(Problem("space", what))
    return problems


def _check_space_type(space: Any, is_search: bool) -> Problem | None:
    """What is wrong with the space as a whole: neither a dict nor what else may stand there."""
    if callable(space) or (is_search and isinstance(space, Mapping)):
        if not is_search:
            return Problem("space", "got a function; that is for a search: say search='optuna' or 'random' too")
        return (
            None
            if search_space.is_search_space(space)
            else Problem("space", "leaves nothing open; expected tune.choice([...])")
        )
    if is_search:
        return Problem(
            "space", f"got {safe_repr(space)}; expected one dict of fields, or a function, where it is searched"
        )
    if not isinstance(space, (Mapping, list, tuple)) or not all(isinstance(s, Mapping) for s in _list_spaces(space)):
        return Problem("space", f"got {safe_repr(space)}; expected a dict of fields, or a list of dicts")
    return None if _list_spaces(space) else Problem("space", "names nothing; expected at least one dict of fields")


def _has_intermediate_evals(space: Mapping[str, Any]) -> bool:
    """Whether a trial of this space may be evaluated before its end."""
    most = [max(search_space.list_values(space.get(name, 1))) for name in ("epochs", "evals_per_epoch")]
    return bool(math.prod(most) > 1)


def _check_space(space: Mapping[str, Any], location: str, is_search: bool) -> list[Problem]:
    """What is wrong with one space: first its fields one by one, then the combinations that they make."""
    if not space:
        return [Problem(location, "names nothing; expected fields such as model, context_length, batch_size")]
    known = [field.name for field in fields(TrialConfig)]
    problems = []
    for name, value in space.items():
        if name not in known:
            problems.append(unknown_name_problem(name, known).nested_in(location))
        elif problem := search_space.check_field_space(name, value, is_search=is_search):
            problems.append(problem.nested_in(location))
        else:
            found = [validation.validate_field(name, one)[1] for one in search_space.list_values(value)]
            problems += [problem.nested_in(location) for problem in found if problem]
    if (
        not problems and search_space.count_combinations(space) <= MAX_TRIALS
    ):  # the sweep as a whole is counted in the end
        together = {
            p: None for point in _iter_grid(space) for p in validation.check_combination(_default_fields() | point)
        }
        problems = [problem.nested_in(location) for problem in together]
    return problems


def _default_fields() -> dict[str, Any]:
    return {field.name: field.default for field in fields(TrialConfig)}
