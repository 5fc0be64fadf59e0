"""sweep.json: the trials of a sweep and what each launch of it ran with. Standard library only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from raylm.config import validation
from raylm.config.trial import TrialConfig
from raylm.errors import UserError, show
from raylm.results import manifest
from raylm.results.storage import Storage

NAME = "sweep.json"


@dataclass(frozen=True)
class Record:
    """What sweep.json says."""

    name: str
    """Of the sweep."""
    trials: list[TrialConfig]
    """Of a grid all of them, of a search those suggested so far; in order."""
    search: str | None = None
    """How its trials were suggested; None: they are a grid."""
    failed: frozenset[str] = frozenset()
    """Ids of trials whose failure has had a part in what came after them."""
    lag: int | None = None
    """A trial follows from the results of those that are so many places and more before it; None: from none."""
    exhausted: bool = False
    """Whether the search has no more different trials to suggest."""
    launches: list[dict[str, Any]] = field(default_factory=list)
    """What each launch ran with, oldest first."""


def read(folder: Storage) -> Record | None:
    """The record in a results folder, None where there is none yet.

    Raises:
        UserError: if it is damaged or of another version.
    """
    path = folder.where(NAME)
    try:
        content = json.loads(folder.read(NAME))
        version = content["version"]
        if version == manifest.VERSION:
            return _record(content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{path} is damaged ({error})"
        raise UserError(f"{what}; move it away and run the sweep again: no finished row is lost") from None
    what = f"{path} has version {version}, this raylm reads version {manifest.VERSION}"
    raise UserError(f"{what}; use the raylm that made it")


def _record(content: dict[str, Any]) -> Record:
    trials = content["trials"]
    return Record(
        name=str(content["name"]),
        trials=[_trial(one["config"]) for one in trials],
        search=content.get("search"),
        failed=frozenset(one["id"] for one in trials if one.get("failed")),
        lag=content.get("lag"),
        exhausted=bool(content.get("exhausted")),
        launches=[dict(one) for one in content.get("launches", [])],
    )


def _trial(fields_by_name: dict[str, Any]) -> TrialConfig:
    """A recorded trial, whose run name is used as the name of a folder: it is not believed blindly."""
    trial = TrialConfig.recorded(fields_by_name)
    for name, value in trial.as_dict().items():
        if not validation.is_recorded(name, value):
            raise ValueError(f"a trial has {name} {show(value)}")
    return trial


def launches(folder: Storage) -> list[dict[str, Any]]:
    """What the launches so far ran with, oldest first."""
    known = read(folder)
    return known.launches if known else []


def identity(folder: Storage) -> str | None:
    """What tells a results folder from all others, wherever it is moved; None before its first launch."""
    return next((str(one["sweep_id"]) for one in launches(folder) if "sweep_id" in one), None)


def write(folder: Storage, record: Record) -> None:
    """Writes the record into a results folder."""
    content = {
        "version": manifest.VERSION,
        "name": record.name,
        "trials": [
            {
                "id": trial.id,
                "run": trial.run_name,
                "config": trial.as_dict(),
                **({"failed": True} if trial.id in record.failed else {}),
            }
            for trial in record.trials
        ],
        "search": record.search,
        "lag": record.lag,
        "exhausted": record.exhausted,
        "launches": record.launches,
    }
    folder.write(NAME, json.dumps(content, indent=2))
