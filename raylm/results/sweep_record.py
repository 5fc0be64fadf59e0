"""sweep.json: the trials of a sweep and what each launch of it ran with. Standard library only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from raylm.config import validation
from raylm.config.trial import TrialConfig
from raylm.errors import UserError, safe_repr
from raylm.results import manifest
from raylm.results.storage import Storage

RECORD_FILE = "sweep.json"


@dataclass(frozen=True)
class SweepRecord:
    """What sweep.json says."""

    name: str
    """Of the sweep."""
    trials: list[TrialConfig]
    """Of a grid all of them, of a search those suggested so far; in order."""
    search: str | None = None
    """How its trials were suggested; None: they are a grid."""
    failed_ids: frozenset[str] = frozenset()
    """Ids of trials whose failure has had a part in what came after them."""
    delay: int | None = None
    """A trial follows from the results of those that are so many places and more before it; None: from none."""
    exhausted: bool = False
    """Whether the search has no more different trials to suggest."""
    launches: list[dict[str, Any]] = field(default_factory=list)
    """What each launch ran with, oldest first."""


def read(storage: Storage) -> SweepRecord | None:
    """The record in a results folder, None where there is none yet.

    Raises:
        UserError: if it is damaged or of another version.
    """
    path = storage.uri_of(RECORD_FILE)
    try:
        content = json.loads(storage.read(RECORD_FILE))
        version = content["version"]
        if version == manifest.FORMAT_VERSION:
            return _parse_record(content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{path} is damaged ({error})"
        raise UserError(f"{what}; move it away and run the sweep again: no finished row is lost") from None
    what = f"{path} has version {version}, this raylm reads version {manifest.FORMAT_VERSION}"
    raise UserError(f"{what}; use the raylm that made it")


def _parse_record(content: dict[str, Any]) -> SweepRecord:
    trials = content["trials"]
    return SweepRecord(
        name=str(content["name"]),
        trials=[_parse_trial(one["config"]) for one in trials],
        search=content.get("search"),
        failed_ids=frozenset(one["id"] for one in trials if one.get("failed")),
        delay=content.get("lag"),
        exhausted=bool(content.get("exhausted")),
        launches=[dict(one) for one in content.get("launches", [])],
    )


def _parse_trial(data: dict[str, Any]) -> TrialConfig:
    """A recorded trial, whose run name is used as the name of a folder: it is not believed blindly."""
    trial = TrialConfig.from_record(data)
    for name, value in trial.as_dict().items():
        if not validation.is_valid_field(name, value):
            raise ValueError(f"a trial has {name} {safe_repr(value)}")
    return trial


def load_launches(storage: Storage) -> list[dict[str, Any]]:
    """What the launches so far ran with, oldest first."""
    known = read(storage)
    return known.launches if known else []


def load_sweep_id(storage: Storage) -> str | None:
    """What tells a results folder from all others, wherever it is moved; None before its first launch."""
    return next((str(one["sweep_id"]) for one in load_launches(storage) if "sweep_id" in one), None)


def write(storage: Storage, record: SweepRecord) -> None:
    """Writes the record into a results folder."""
    content = {
        "version": manifest.FORMAT_VERSION,
        "name": record.name,
        "trials": [
            {
                "id": trial.id,
                "run": trial.run_name,
                "config": trial.as_dict(),
                **({"failed": True} if trial.id in record.failed_ids else {}),
            }
            for trial in record.trials
        ],
        "search": record.search,
        "lag": record.delay,
        "exhausted": record.exhausted,
        "launches": record.launches,
    }
    storage.write(RECORD_FILE, json.dumps(content, indent=2))
