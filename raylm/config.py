"""What a user writes: trials and sweeps, and every check of them. Standard library only; no torch, no hub, no Ray."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from raylm import checks, spaces
from raylm.errors import Problem, SweepError, show, unknown

MAX_TRIALS = 10_000
"""A sweep of more trials than this is taken for a slip of the pen."""


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One row of the table: everything that its numbers depend on, and nothing else.

    Raises:
        SweepError: naming every field that does not fit.
    """

    dataset: str = "pydocs"
    """`pydocs`, `wikitext2`, `wikitext103`, `imdb`, a hub id `owner/name[:config]`, a text file, or a folder with
    train.txt and validation.txt."""
    model: str = "gpt2-nano"
    """`gpt2-nano`, `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`, a hub id `owner/name`, or a folder."""
    context_length: int = 1024
    """Positions of a window, in tokens."""
    batch_size: int = 8
    """Windows (sequences) per optimizer step, whatever the memory of the device makes of them."""
    epochs: int = 1
    """Passes over the train split."""
    optimizer: str = "adafactor"
    """`adafactor` (absolute step, no momentum) or `adamw`."""
    learning_rate: float = 5e-5
    """Peak learning rate: with Adafactor, the root mean square of a step."""
    lr_schedule: str = "linear"
    """After the warm-up: `linear` to zero, `cosine` to zero, or `constant`."""
    warmup_ratio: float = 0.1
    """Share of the optimizer steps in which the learning rate rises from zero."""
    weight_decay: float = 0.0
    """Decoupled decay of weight matrices, per unit of learning rate."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm over all parameters; 0 switches it off."""
    dropout: float | None = None
    """Dropout probability everywhere in the model; None keeps the model's own."""
    seed: int = 0
    """Seeds the order of windows, dropout and random weights."""
    pretrained: bool = True
    """False: the model's architecture with random weights (`gpt2-nano` has no others)."""
    max_train_tokens: int | None = None
    """Only so many tokens from the start of the train split; None: all."""
    evals_per_epoch: int = 1
    """Evaluations (and checkpoints) per epoch, evenly spaced, the last at its end."""

    def __post_init__(self) -> None:
        problems = []
        for field in fields(self):
            value, problem = checks.field_value(field.name, getattr(self, field.name))
            problems += [problem] if problem else []
            object.__setattr__(self, field.name, value)
        problems = problems or checks.together(self.as_dict())
        if problems:
            raise SweepError(problems)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, in the order of their definition."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def id(self) -> str:
        """Ten hex digits that stand for this config.

        Fields that are None do not count, so that a field added later with None as its default leaves the ids of
        finished trials as they are.
        """
        named = {name: value for name, value in self.as_dict().items() if value is not None}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def run_name(self) -> str:
        """The name of this trial everywhere: table, Tune, folder. Readable in front, unique by the id behind."""
        parts = [_slug(self.dataset), _slug(self.model), f"{self.context_length}x{self.batch_size}"]
        parts += [f"lr{self.learning_rate:g}"] if self.learning_rate != type(self).learning_rate else []
        parts += [f"e{self.epochs}"] if self.epochs != type(self).epochs else []
        parts += [f"s{self.seed}"] if self.seed != type(self).seed else []
        return "-".join([*parts, self.id])

    @classmethod
    def recorded(cls, fields_by_name: Mapping[str, Any]) -> TrialConfig:
        """A config that raylm wrote down before. It is not checked again: its files may be elsewhere by now."""
        config = object.__new__(cls)
        for field in fields(cls):
            object.__setattr__(config, field.name, fields_by_name.get(field.name, field.default))
        return config


def _slug(name: str) -> str:
    """The last part of a path or hub id, as far as it can stand in a folder's name."""
    last = name.rstrip("/").split("/")[-1]
    return re.sub(r"[^a-z0-9.]+", "-", last.lower()).strip("-.")[:24] or "local"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets of the cluster."""

    gpus: float | Literal["auto"] | None = None
    """GPUs per trial: a fraction of one, or a whole number, all of one node; 0 for none; None: one where the cluster
    has any, else none; `auto`: as None, but trials that leave a GPU idle share one. Several train a trial together,
    each on its share of a batch's windows."""
    cpus: int = 1
    """CPU cores per trial, and its number of threads; of several GPUs each has a process, with its share of them."""

    def __post_init__(self) -> None:
        if problems := checks.resources(self.gpus, self.cpus):
            raise SweepError(problems)
        if self.gpus is not None and self.gpus != "auto":
            object.__setattr__(self, "gpus", float(self.gpus))
        object.__setattr__(self, "cpus", int(self.cpus))


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

    def __new__(cls, **named: Any) -> Sweep:
        """Names unknown options and everything else that is wrong in one error, where Python would stop at one."""
        known = [field.name for field in fields(cls)]
        problems = [unknown(name, known) for name in named if name not in known]
        problems += [Problem(name, "is missing") for name in ("name", "space") if name not in named]
        if named and problems:  # copying an object calls this without any
            raise SweepError(problems + _sweep_problems({n: v for n, v in named.items() if n in known}))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if problems := _sweep_problems({field.name: getattr(self, field.name) for field in fields(self)}):
            raise SweepError(problems)
        object.__setattr__(self, "max_failures", int(self.max_failures))
        object.__setattr__(self, "search_seed", int(self.search_seed))
        object.__setattr__(self, "storage", None if self.storage is None else str(self.storage))

    def trials(self) -> list[TrialConfig]:
        """All trials of a grid in the order of the file, the last field of a space varying fastest, each once."""
        seeds: list[dict[str, Any]] = [{"seed": seed} for seed in self.seeds] if self.seeds is not None else [{}]
        points = [point for space in _spaces(self.space) for point in _grid(space)]
        configs = [TrialConfig(**point, **seed) for point in points for seed in seeds]
        return list({config.id: config for config in configs}.values())

    @property
    def searched_by(self) -> str | None:
        """What suggests its trials; None: they are a grid."""
        return self.search if self.search is None or isinstance(self.search, str) else type(self.search).__name__

    @property
    def points(self) -> int:
        """How many rows the spaces of a grid name, repetitions counted."""
        return _size(self.space, self.seeds)

    def override(self, values: Mapping[str, Any]) -> Sweep:
        """This sweep with some fields set for all of its trials, whatever its spaces say of them."""
        seeds = None if "seed" in values else self.seeds
        if callable(self.space):
            function = self.space
            return dataclasses.replace(self, space=lambda trial: {**(function(trial) or {}), **values}, seeds=seeds)
        changed = [{**space, **values} for space in _spaces(self.space)]
        points = [{k: v for k, v in point.items() if k not in values} for point in self.points_to_evaluate]
        space = changed if isinstance(self.space, (list, tuple)) else changed[0]
        return dataclasses.replace(self, space=space, seeds=seeds, points_to_evaluate=points)


def _spaces(space: Any) -> Sequence[Mapping[str, Any]]:
    return [space] if isinstance(space, Mapping) else space


def _size(space: Any, seeds: Sequence[int] | None) -> int:
    return sum(map(spaces.size, _spaces(space))) * (1 if seeds is None else len(seeds))


def _grid(space: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*map(spaces.values, space.values())):
        yield dict(zip(space, values, strict=True))


def _sweep_problems(named: Mapping[str, Any]) -> list[Problem]:
    problems = checks.sweep_options(named) + spaces.options(named)
    if "space" not in named:
        return problems
    space, searched = named["space"], named.get("search") is not None
    if problem := _kind_problem(space, searched):
        return [*problems, problem]
    if callable(space):
        return problems  # what it gives is looked at before anything starts
    for number, one in enumerate(_spaces(space)):
        problems += _space_problems(one, "space" if isinstance(space, Mapping) else f"space[{number}]", searched)
    seeds = named.get("seeds")
    if seeds is not None and any("seed" in one for one in _spaces(space)):
        problems.append(Problem("seeds", "and a seed in the space; expected one of them"))
    gpus = getattr(named.get("resources"), "gpus", None)
    for number, one in enumerate([] if problems else _spaces(space)):
        where = "space" if isinstance(space, Mapping) else f"space[{number}]"
        sizes = spaces.values(one.get("batch_size", TrialConfig.batch_size))
        problem = checks.windows_for_all("batch_size", sizes, gpus)
        problems += [problem.inside(where)] if problem else []
    if not problems and not searched and (size := _size(space, seeds)) > MAX_TRIALS:
        problems.append(Problem("space", f"makes {size:,} trials; a sweep has at most {MAX_TRIALS:,}"))
    if not problems and named.get("scheduler") == "asha" and not any(map(_evaluated_on_its_way, _spaces(space))):
        what = "evaluates each trial but once, at its end; asha needs evals_per_epoch of 2 at least, as 9"
        problems.append(Problem("space", what))
    return problems


def _kind_problem(space: Any, searched: bool) -> Problem | None:
    """What is wrong with the space as a whole: neither a dict nor what else may stand there."""
    if callable(space) or (searched and isinstance(space, Mapping)):
        if not searched:
            return Problem("space", "got a function; that is for a search: say search='optuna' or 'random' too")
        return (
            None if spaces.is_searched(space) else Problem("space", "leaves nothing open; expected tune.choice([...])")
        )
    if searched:
        return Problem("space", f"got {show(space)}; expected one dict of fields, or a function, where it is searched")
    if not isinstance(space, (Mapping, list, tuple)) or not all(isinstance(s, Mapping) for s in _spaces(space)):
        return Problem("space", f"got {show(space)}; expected a dict of fields, or a list of dicts")
    return None if _spaces(space) else Problem("space", "names nothing; expected at least one dict of fields")


def _evaluated_on_its_way(space: Mapping[str, Any]) -> bool:
    """Whether a trial of this space may be evaluated before its end."""
    most = [max(spaces.values(space.get(name, 1))) for name in ("epochs", "evals_per_epoch")]
    return bool(math.prod(most) > 1)


def _space_problems(space: Mapping[str, Any], where: str, searched: bool) -> list[Problem]:
    """What is wrong with one space: first its fields one by one, then the combinations that they make."""
    if not space:
        return [Problem(where, "names nothing; expected fields such as model, context_length, batch_size")]
    known = [field.name for field in fields(TrialConfig)]
    problems = []
    for name, value in space.items():
        if name not in known:
            problems.append(unknown(name, known).inside(where))
        elif problem := spaces.problem(name, value, searched=searched):
            problems.append(problem.inside(where))
        else:
            found = [checks.field_value(name, one)[1] for one in spaces.values(value)]
            problems += [problem.inside(where) for problem in found if problem]
    if not problems and spaces.size(space) <= MAX_TRIALS:  # the sweep as a whole is counted in the end
        together = {p: None for point in _grid(space) for p in checks.together(_defaults() | point)}
        problems = [problem.inside(where) for problem in together]
    return problems


def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in fields(TrialConfig)}
