"""A results folder to rows: what is done, what is missing, where the checkpoints are. No torch, no Ray.

The checkpoints' manifests are the witnesses; `status.json` tells of trials that ended without one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results import manifest, sweep_record
from raylm.results.progress import Progress
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, MISSING, STOPPED, Results, Row, SavedCheckpoint
from raylm.results.storage import Storage

STATUS_FILE = "status.json"
ELSEWHERE_FILE = "other-context-lengths.json"

LAUNCH, CHECKPOINT = re.compile(r"launch-\d+"), re.compile(r"checkpoint_.*")
"""Names of folders: of a launch, and of a checkpoint in a trial's own within that."""


def standing(sweep: Sweep, folder: Storage) -> Results:
    """How a sweep stands: the rows of its grid, or those that its search has suggested so far."""
    if sweep.search is None:
        return find_rows(folder, sweep.trials())
    known = sweep_record.read(folder)
    return find_rows(folder, known.trials[: sweep.num_samples] if known else [])


def launches(folder: Storage) -> list[str]:
    """The names of the launches' folders, oldest first."""
    found = [name for name, size in folder.entries(deep=False).items() if size is None and LAUNCH.fullmatch(name)]
    return sorted(found, key=launch_number)


def launch_number(launch: str) -> int:
    """The number of a launch."""
    return int(launch.removeprefix("launch-"))


def next_launch(folder: Storage) -> str:
    """The name of a launch that is about to begin."""
    return f"launch-{max(map(launch_number, launches(folder)), default=0) + 1:03d}"


def find_rows(folder: Storage, trials: Iterable[TrialConfig]) -> Results:
    """How these trials stand."""
    elsewhere, everything = read_elsewhere(folder), folder.entries()
    by_run: dict[str, dict[str, int | None]] = {}
    for name, size in everything.items():
        launch, _, below = name.partition("/")
        if below and LAUNCH.fullmatch(launch):
            by_run.setdefault(below.split("/")[0], {})[name] = size
    return Results(folder, [_row(folder, config, by_run.get(config.run_name, {}), elsewhere) for config in trials])


def find_row(folder: Storage, trial: TrialConfig) -> Row:
    """How one trial stands."""
    return _row(folder, trial, _entries(folder, trial), {})


def _entries(folder: Storage, trial: TrialConfig) -> dict[str, int | None]:
    """What there is of a trial, over all launches."""
    found: dict[str, int | None] = {}
    for launch in launches(folder):
        found |= folder.entries(f"{launch}/{trial.run_name}")
    return found


def checkpoints(folder: Storage, config: TrialConfig) -> Iterator[SavedCheckpoint]:
    """All checkpoints of a trial, over all launches, in no order. Files are there in size, not checked in content."""
    yield from _checkpoints(folder, config, _entries(folder, config))


def _checkpoints(folder: Storage, config: TrialConfig, entries: Mapping[str, int | None]) -> Iterator[SavedCheckpoint]:
    for name in entries:
        checkpoint, _, file = name.rpartition("/")
        if file != manifest.NAME or not CHECKPOINT.fullmatch(checkpoint.rpartition("/")[2]):
            continue
        inside = len(checkpoint) + 1
        sizes = {other[inside:]: size for other, size in entries.items() if other.startswith(f"{checkpoint}/")}
        try:
            content = manifest.parsed(folder.read(name), sizes)
            if content is None or content.get("trial_id") != config.id:
                continue
            saved = SavedCheckpoint(checkpoint, Progress.from_dict(content["progress"]), _weights(content))
        except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
            continue  # no manifest of raylm's
        yield saved


def _weights(content: Mapping[str, Any]) -> str:
    """What stands for a checkpoint's weights: the hashes of the files of its model."""
    files = {name: file["sha256"] for name, file in content["files"].items() if name.startswith("model")}
    return "-".join(files[name] for name in sorted(files) if name.endswith(".safetensors"))


def read_elsewhere(folder: Storage) -> dict[str, dict[int, float]]:
    """Val losses at other context lengths, by what stands for the weights and by length; empty where there are none."""
    try:
        content = json.loads(folder.read(ELSEWHERE_FILE))
        return {weights: {int(length): float(loss) for length, loss in one.items()} for weights, one in content.items()}
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return {}


@contextmanager
def newest_verified(folder: Storage, config: TrialConfig) -> Iterator[Path | None]:
    """The checkpoint that a trial goes on from: the newest whose every file has the content that its manifest says.

    It is on this machine for as long as it is entered.
    """
    for saved in sorted(checkpoints(folder, config), key=lambda one: one.progress.step, reverse=True):
        with folder.local(saved.folder) as local:
            if manifest.verify(local):
                yield local
                return
    yield None


def _row(
    folder: Storage,
    config: TrialConfig,
    entries: Mapping[str, int | None],
    elsewhere: Mapping[str, Mapping[int, float]],
) -> Row:
    saved = list(_checkpoints(folder, config, entries))
    latest = max(saved, key=lambda one: one.progress.step, default=None)
    best = None
    if latest is not None and latest.progress.best is not None:
        best = next((one for one in saved if one.progress.step == latest.progress.best.step), None)
    if latest is not None and latest.progress.finished:
        return Row(config, DONE, "", latest, best, elsewhere.get(best.weights, {}) if best else {})
    tried = sorted({name.split("/")[0] for name in entries}, key=launch_number)
    ending = _ending(folder, tried[-1], config) if tried else {}
    default = INTERRUPTED if tried else MISSING
    return Row(config, ending.get("status", default), ending.get("reason", ""), latest, best)


def _ending(folder: Storage, launch: str, config: TrialConfig) -> Mapping[str, str]:
    """How a trial ended in a launch; nothing where it was still running, or this cannot be read."""
    try:
        ending = json.loads(folder.read(f"{launch}/{config.run_name}/{STATUS_FILE}"))
        known = ending["trial_id"] == config.id and ending["status"] in (STOPPED, DIVERGED, FAILED)
        return ending if known else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def write_ending(folder: Storage, launch: str, config: TrialConfig, status: str, reason: str) -> None:
    """Notes that a trial was stopped early, diverged or failed in a launch."""
    content = {"trial_id": config.id, "status": status, "reason": reason}
    folder.write(f"{launch}/{config.run_name}/{STATUS_FILE}", json.dumps(content, indent=2))


def prune(results: Results) -> None:
    """Removes what launches left behind of trials that ended: all checkpoints but the best and the latest."""
    for row in results.rows:
        kept = {saved.folder for saved in (row.latest, row.best) if saved is not None}
        if row.ended and row.latest is not None:
            for name, size in _entries(results.storage, row.config).items():
                if size is None and CHECKPOINT.fullmatch(name.rpartition("/")[2]) and name not in kept:
                    results.storage.remove(name)


@contextmanager
def best_epoch(results: Results, row: Row) -> Iterator[Path]:
    """The folder of a row's best epoch, on this machine for as long as it is entered.

    Raises:
        UserError: if there is none, or a file of it is not what its manifest says.
    """
    if row.best is None:
        raise UserError(f"{row.config.run_name} ({row.status}) has no checkpoint of an evaluated epoch")
    with results.storage.local(row.best.folder) as folder:
        if manifest.verify(folder) is None:
            where = results.storage.where(row.best.folder)
            raise UserError(f"{where} is damaged; run the sweep again after moving it away")
        yield folder
