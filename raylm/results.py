"""A results folder to rows: what is done, what is missing, where the checkpoints are. No torch, no Ray.

The checkpoints' manifests are the witnesses; `status.json` tells of trials that ended without one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raylm import manifest, record
from raylm.config import Sweep, TrialConfig
from raylm.errors import UserError, nearest, show
from raylm.progress import Measured, Progress
from raylm.storage import Storage

STATUS_FILE = "status.json"
ELSEWHERE_FILE = "other-context-lengths.json"

LAUNCH, CHECKPOINT = re.compile(r"launch-\d+"), re.compile(r"checkpoint_.*")
"""Names of folders: of a launch, and of a checkpoint in a trial's own within that."""

DONE, STOPPED, DIVERGED, FAILED = "done", "stopped", "diverged", "failed"
INTERRUPTED, MISSING = "interrupted", "missing"
RUNNING, WAITING = "running", "waiting"
"""What a row can be: trained to its last step; stopped early by the scheduler; a loss was not finite; gave an error
until its retries were used up; ended on its way, to go on from its checkpoint; not begun. And while a command runs it,
of which storage says nothing: running; to be begun or gone on with."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint folder whose files are all there."""

    folder: str
    """Its name in the results folder."""
    progress: Progress
    """How far the trial was."""
    weights: str = ""
    """Stands for its weights."""


@dataclass(frozen=True)
class Row:
    """One trial as it stands in storage."""

    config: TrialConfig
    """What it is."""
    status: str
    """`done`, `stopped`, `diverged`, `failed`, `interrupted` or `missing`."""
    reason: str
    """Why it was stopped, diverged or failed, in a line."""
    latest: SavedCheckpoint | None
    """The checkpoint with the most steps done."""
    best: SavedCheckpoint | None
    """The checkpoint of the best epoch."""
    elsewhere: Mapping[int, float] = field(default_factory=dict)
    """Val loss of the best checkpoint at other context lengths, by their tokens, where `raylm evaluate` was run."""

    @property
    def measured(self) -> Measured | None:
        """The losses of the best epoch; None where no epoch was evaluated."""
        return self.latest.progress.best if self.latest else None

    @property
    def evaluations(self) -> list[Measured]:
        """All of its evaluations so far."""
        return self.latest.progress.evaluations if self.latest else []

    def cut_off(self, last: Measured) -> Row:
        """This row as it would stand, had it been stopped early at one of its evaluations."""
        assert self.latest is not None
        kept = [one for one in self.evaluations if one.tokens_seen <= last.tokens_seen]
        progress = replace(self.latest.progress, evaluations=kept)
        return replace(self, status=STOPPED, latest=replace(self.latest, progress=progress))

    @property
    def ended(self) -> bool:
        """Whether running the sweep again leaves this row as it is."""
        return self.status in (DONE, STOPPED, DIVERGED, FAILED)


@dataclass(frozen=True)
class Results:
    """The rows of a sweep, in its order."""

    storage: Storage
    """The results folder."""
    rows: list[Row]
    """In the order of the sweep file."""

    def best(self, dataset: str | None = None) -> Row:
        """The finished row with the lowest adj val loss.

        Args:
            dataset: among the rows of which; needed where the sweep has several.

        Raises:
            UserError: if it is needed, the sweep does not have it, or no row of it is finished.
        """
        known = list(dict.fromkeys(row.config.dataset for row in self.rows))
        if dataset is None and len(known) > 1:
            raise UserError(f"{self.storage.place} has a best row for each dataset; name one: {', '.join(known)}")
        if dataset is not None and dataset not in known:
            raise UserError(f"{self.storage.place} has no dataset {show(dataset)}; expected {' or '.join(known)}")
        best = self.best_by_dataset.get(dataset or "".join(known))
        if best is None:
            raise UserError(f"{self.storage.place} has no finished row{f' of {dataset}' if dataset else ''} yet")
        return best

    @property
    def best_by_dataset(self) -> dict[str, Row]:
        """Of each dataset the finished row with the lowest adj val loss, which alone compares between tokenizers."""
        best: dict[str, Row] = {}
        lowest: dict[str, float] = {}
        for row in self.rows:
            dataset, measured = row.config.dataset, row.measured
            if row.status == DONE and measured and measured.adj_val_loss < lowest.get(dataset, math.inf):
                best[dataset], lowest[dataset] = row, measured.adj_val_loss
        return best

    def row(self, run: str) -> Row:
        """The row of a run name.

        Raises:
            UserError: if there is none.
        """
        found = {row.config.run_name: row for row in self.rows}
        if run not in found:
            hint = nearest(run, found) or "; `raylm report` shows their names"
            raise UserError(f"{self.storage.place} has no run {show(run)}{hint}")
        return found[run]

    def count(self, *statuses: str) -> int:
        """How many rows have one of these statuses."""
        return sum(row.status in statuses for row in self.rows)


def standing(sweep: Sweep, folder: Storage) -> Results:
    """How a sweep stands: the rows of its grid, or those that its search has suggested so far."""
    if sweep.search is None:
        return find_rows(folder, sweep.trials())
    known = record.read(folder)
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
