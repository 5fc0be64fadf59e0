"""sweep.json: the trials of a sweep and what each launch of it ran with. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raylm import manifest
from raylm.config import Sweep, TrialConfig
from raylm.errors import UserError

NAME = "sweep.json"


def read(folder: Path) -> dict[str, Any] | None:
    """The record in a results folder, None where there is none yet.

    Raises:
        UserError: if it is damaged or of another version.
    """
    path = folder / NAME
    try:
        if not path.exists():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["version"]
        if version == manifest.VERSION:
            configs = [one["config"] for one in record["trials"]]
            record = {"launches": [], **record, "trials": [{"config": config} for config in configs]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"{path} is damaged ({error})"
        raise UserError(f"{what}; move it away and run the sweep again: no finished row is lost") from None
    if version != manifest.VERSION:
        what = f"{path} has version {version}, this raylm reads version {manifest.VERSION}"
        raise UserError(f"{what}; use the raylm that made it")
    return dict(record)


def launches(folder: Path) -> list[dict[str, Any]]:
    """What the launches so far ran with, oldest first."""
    return list((read(folder) or {"launches": []})["launches"])


def write(folder: Path, sweep: Sweep, past_and_present: Sequence[dict[str, Any]]) -> None:
    """Writes the record of a sweep as it is now; with its launches, past and present."""
    trials = [{"id": trial.id, "run": trial.run_name, "config": trial.as_dict()} for trial in sweep.trials()]
    content = {"version": manifest.VERSION, "name": sweep.name, "trials": trials, "launches": list(past_and_present)}
    manifest.write_text(folder / NAME, json.dumps(content, indent=2))


def is_of(record: dict[str, Any], sweep: Sweep) -> bool:
    """Whether the trials of a record are those of this sweep, in its order."""
    return [TrialConfig.recorded(one["config"]) for one in record["trials"]] == sweep.trials()
