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
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, STOPPED, Results, Row, SavedCheckpoint
from raylm.results.storage import Storage
from raylm.results.sweep_record import SweepRecord

STATUS_FILE = "status.json"
LENGTH_EVALS_FILE = "other-context-lengths.json"

LAUNCH_PATTERN, CHECKPOINT_PATTERN = re.compile(r"launch-\d+"), re.compile(r"checkpoint_.*")
"""Names of folders: of a launch, and of a checkpoint in a trial's own within that."""


def find_results(sweep: Sweep, storage: Storage) -> Results:
    """Return the rows of a sweep: of its grid, or those that its search has suggested so far.

    Raises:
        UserError: if sweep.json is damaged or of another version.
    """
    record = sweep_record.load(storage)
    if sweep.search is None:
        return load_rows(storage, sweep.trials(), record)
    return load_rows(storage, record.trials[: sweep.num_samples] if record else [], record)


def list_launches(storage: Storage) -> list[str]:
    """The names of the launches' folders, oldest first."""
    found = [
        name
        for name, size in storage.list_entries(recursive=False).items()
        if size is None and LAUNCH_PATTERN.fullmatch(name)
    ]
    return sorted(found, key=parse_launch_number)


def parse_launch_number(launch: str) -> int:
    """The number of a launch."""
    return int(launch.removeprefix("launch-"))


def next_launch_name(storage: Storage) -> str:
    """The name of a launch that is about to begin."""
    return f"launch-{max(map(parse_launch_number, list_launches(storage)), default=0) + 1:03d}"


def load_rows(storage: Storage, trials: Iterable[TrialConfig], record: SweepRecord | None = None) -> Results:
    """Return the rows of these trials, with the record of their sweep."""
    elsewhere, everything = load_length_evals(storage), storage.list_entries()
    by_run: dict[str, dict[str, int | None]] = {}
    for name, size in everything.items():
        launch, _, below = name.partition("/")
        if below and LAUNCH_PATTERN.fullmatch(launch):
            by_run.setdefault(below.split("/")[0], {})[name] = size
    rows = [_build_row(storage, config, by_run.get(config.run_name, {}), elsewhere) for config in trials]
    return Results(storage, rows, record)


def load_row(storage: Storage, trial: TrialConfig) -> Row:
    """How one trial stands."""
    return _build_row(storage, trial, _list_trial_entries(storage, trial), {})


def _list_trial_entries(storage: Storage, trial: TrialConfig) -> dict[str, int | None]:
    """What there is of a trial, over all launches."""
    found: dict[str, int | None] = {}
    for launch in list_launches(storage):
        found |= storage.list_entries(f"{launch}/{trial.run_name}")
    return found


def find_checkpoints(storage: Storage, config: TrialConfig) -> Iterator[SavedCheckpoint]:
    """All checkpoints of a trial, over all launches, in no order. Files are there in size, not checked in content."""
    yield from _find_checkpoints(storage, config, _list_trial_entries(storage, config))


def _find_checkpoints(
    storage: Storage, config: TrialConfig, entries: Mapping[str, int | None]
) -> Iterator[SavedCheckpoint]:
    for name in entries:
        checkpoint, _, file = name.rpartition("/")
        if file != manifest.MANIFEST_FILE or not CHECKPOINT_PATTERN.fullmatch(checkpoint.rpartition("/")[2]):
            continue
        inside = len(checkpoint) + 1
        sizes = {other[inside:]: size for other, size in entries.items() if other.startswith(f"{checkpoint}/")}
        try:
            content = manifest.parse(storage.read(name), sizes)
            if content is None or content.get("trial_id") != config.id:
                continue
            saved = SavedCheckpoint(checkpoint, Progress.from_dict(content["progress"]), _hash_weights(content))
        except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
            continue  # no manifest of raylm's
        yield saved


def _hash_weights(content: Mapping[str, Any]) -> str:
    """What stands for a checkpoint's weights: the hashes of the files of its model."""
    files = {name: file["sha256"] for name, file in content["files"].items() if name.startswith("model")}
    return "-".join(files[name] for name in sorted(files) if name.endswith(".safetensors"))


def load_length_evals(storage: Storage) -> dict[str, dict[int, float]]:
    """Val losses at other context lengths, by what stands for the weights and by length; empty where there are none."""
    try:
        content = json.loads(storage.read(LENGTH_EVALS_FILE))
        return {weights: {int(length): float(loss) for length, loss in one.items()} for weights, one in content.items()}
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return {}


@contextmanager
def open_latest_checkpoint(storage: Storage, config: TrialConfig) -> Iterator[Path | None]:
    """The checkpoint that a trial goes on from: the newest whose every file has the content that its manifest says.

    It is on this machine for as long as it is entered.
    """
    for saved in sorted(find_checkpoints(storage, config), key=lambda one: one.progress.step, reverse=True):
        with storage.local_copy(saved.folder) as local:
            if manifest.verify(local):
                yield local
                return
    yield None


def _build_row(
    storage: Storage,
    config: TrialConfig,
    entries: Mapping[str, int | None],
    length_evals: Mapping[str, Mapping[int, float]],
) -> Row:
    saved = list(_find_checkpoints(storage, config, entries))
    latest = max(saved, key=lambda one: one.progress.step, default=None)
    best = None
    if latest is not None and latest.progress.best_metrics is not None:
        best = next((one for one in saved if one.progress.step == latest.progress.best_metrics.step), None)
    if latest is not None and latest.progress.is_complete:
        return Row(config, DONE, "", latest, best, length_evals.get(best.weights_hash, {}) if best else {})
    tried = sorted({name.split("/")[0] for name in entries}, key=parse_launch_number)
    ending = _load_final_status(storage, tried[-1], config) if tried else {}
    default = INTERRUPTED if tried else PENDING
    return Row(config, ending.get("status", default), ending.get("reason", ""), latest, best)


def _load_final_status(storage: Storage, launch: str, config: TrialConfig) -> Mapping[str, str]:
    """How a trial ended in a launch; nothing where it was still running, or this cannot be read."""
    try:
        ending = json.loads(storage.read(f"{launch}/{config.run_name}/{STATUS_FILE}"))
        known = ending["trial_id"] == config.id and ending["status"] in (STOPPED, DIVERGED, FAILED)
        return ending if known else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def write_final_status(storage: Storage, launch: str, config: TrialConfig, status: str, reason: str) -> None:
    """Notes that a trial was stopped early, diverged or failed in a launch."""
    content = {"trial_id": config.id, "status": status, "reason": reason}
    storage.write(f"{launch}/{config.run_name}/{STATUS_FILE}", json.dumps(content, indent=2))


def prune_checkpoints(results: Results) -> None:
    """Removes what launches left behind of trials that ended: all checkpoints but the best and the latest."""
    for row in results.rows:
        kept = {saved.folder for saved in (row.latest_checkpoint, row.best_checkpoint) if saved is not None}
        if row.is_finished and row.latest_checkpoint is not None:
            for name, size in _list_trial_entries(results.storage, row.config).items():
                if size is None and CHECKPOINT_PATTERN.fullmatch(name.rpartition("/")[2]) and name not in kept:
                    results.storage.remove(name)


@contextmanager
def open_best_checkpoint(results: Results, row: Row) -> Iterator[Path]:
    """The folder of a row's best epoch, on this machine for as long as it is entered.

    Raises:
        UserError: if there is none, or a file of it is not what its manifest says.
    """
    if row.best_checkpoint is None:
        raise UserError(f"{row.config.run_name} ({row.status}) has no checkpoint of an evaluated epoch")
    with results.storage.local_copy(row.best_checkpoint.folder) as folder:
        if manifest.verify(folder) is None:
            where = results.storage.uri_of(row.best_checkpoint.folder)
            raise UserError(f"{where} is damaged; run the sweep again after moving it away")
        yield folder
