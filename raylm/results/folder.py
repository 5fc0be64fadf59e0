"""Layout of a results folder: launches, trials, checkpoints, and the rows that are read from them.

Each launch has a folder `launch-001`, in it each trial a folder named like its run, in it the checkpoints. Rows follow
from the manifests of the checkpoints, and from `status.json` for trials that ended before their last step.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeVar

from msgspec import Meta

from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results import json_files, manifest, sweep_record, zero_shot
from raylm.results.json_files import DamagedFileError
from raylm.results.rows import DONE, INTERRUPTED, PENDING, Row, SavedCheckpoint, SweepRows
from raylm.results.storage import Storage
from raylm.results.sweep_record import SweepRecord

log = logging.getLogger(__name__)
Key = TypeVar("Key")

STATUS_FILE = "status.json"
LENGTH_EVALS_FILE = "other-context-lengths.json"
TEST_LOSSES_FILE = "test-losses.json"

LAUNCH_PATTERN, CHECKPOINT_PATTERN = re.compile(r"launch-\d+"), re.compile(r"checkpoint_.*")
"""Names of the folders of launches and checkpoints."""

Entries = Mapping[str, int | None]
"""Files and folders by name relative to the results folder: bytes of a file, None for a folder."""


@dataclass(frozen=True)
class FinalStatus:
    """Content of status.json: the end of a trial that did not reach its last step."""

    trial_id: str
    status: Annotated[str, Meta(pattern="^(stopped|diverged|failed)$")]
    reason: str = ""


@dataclass(frozen=True)
class EvaluatedLoss:
    """Loss of a best checkpoint, from `raylm evaluate`."""

    loss: float
    """Nats per token."""
    precision: str | None = None
    """`float32`, `bfloat16` or `float16`; None if a version before has written a number alone."""


LengthEvals = dict[str, dict[int, EvaluatedLoss]]
"""Val losses by hash of the weights and by context length in tokens."""
TestLosses = dict[str, EvaluatedLoss]
"""Losses on the test split by hash of the weights."""


# ---- rows ---------------------------------------------------------------------------------------------------------


def find_results(sweep: Sweep, storage: Storage) -> SweepRows:
    """Return the rows of a sweep: of its grid, or those that its search has suggested so far.

    Raises:
        UserError: if sweep.json is damaged or of another version.
    """
    record = sweep_record.load(storage)
    if sweep.search is None:
        return load_rows(storage, sweep.trials(), record)
    return load_rows(storage, record.trials[: sweep.num_samples] if record else [], record)


def count_unsuggested(sweep: Sweep, results: SweepRows) -> int:
    """Return the number of trials that the search of a sweep has not suggested yet; 0 for a grid."""
    if sweep.num_samples is None or (results.record and results.record.exhausted):
        return 0
    return sweep.num_samples - len(results.rows)


def load_rows(storage: Storage, trials: Iterable[TrialConfig], record: SweepRecord | None = None) -> SweepRows:
    """Return the rows of these trials, with the record of their sweep."""
    length_evals, test_losses = load_length_evals(storage), load_test_losses(storage)
    all_entries = storage.list_entries()
    entries = _group_by_trial(all_entries)

    def build(trial: TrialConfig) -> Row:
        return _build_row(storage, trial, entries(trial), length_evals, test_losses)

    rows = storage.map_reads(build, trials)
    starts = zero_shot.load_losses(storage, all_entries)
    for number, row in enumerate(rows if starts else ()):
        if start := starts.get(zero_shot.zero_shot_key(row.config)):
            rows[number] = replace(row, zero_shot_loss=start.val_loss, zero_shot_precision=start.precision)
    return SweepRows(storage, rows, record)


def _group_by_trial(entries: Entries) -> Callable[[TrialConfig], dict[str, int | None]]:
    """Return the function that gives a trial's part of all files and folders of a results folder."""
    by_folder: dict[str, dict[str, int | None]] = {}
    for name, size in entries.items():
        launch, _, below = name.partition("/")
        if below and LAUNCH_PATTERN.fullmatch(launch):
            by_folder.setdefault(below.partition("/")[0], {})[name] = size

    def find(trial: TrialConfig) -> dict[str, int | None]:
        return {name: size for folder in trial.folder_names for name, size in by_folder.get(folder, {}).items()}

    return find


def load_row(storage: Storage, trial: TrialConfig, launches: Iterable[str]) -> Row:
    """Return the row of one trial, without the values of `raylm evaluate`, from these launches' folders."""
    return _build_row(storage, trial, _list_trial_entries(storage, trial, launches), {}, {})


def _build_row(
    storage: Storage, trial: TrialConfig, entries: Entries, length_evals: LengthEvals, test_losses: TestLosses
) -> Row:
    checkpoints = list(_find_checkpoints(storage, trial, entries))
    latest = max(checkpoints, key=lambda checkpoint: checkpoint.progress.step, default=None)
    best = None
    if latest is not None and latest.progress.best_metrics is not None:
        best_step = latest.progress.best_metrics.step
        best = next((checkpoint for checkpoint in checkpoints if checkpoint.progress.step == best_step), None)
    if latest is not None and latest.progress.is_complete:
        weights = best.weights_hash if best else ""
        return _add_evaluations(
            Row(trial, DONE, "", latest, best), length_evals.get(weights, {}), test_losses.get(weights)
        )
    launches = sorted({name.split("/")[0] for name in entries}, key=parse_launch_number)
    if not launches:
        return Row(trial, PENDING, "", latest, best)
    files = [name for folder in trial.folder_names if (name := f"{launches[-1]}/{folder}/{STATUS_FILE}") in entries]
    final = json_files.load_or_none(storage, files[0], FinalStatus) if files else None
    if final is None or final.trial_id != trial.id:
        return Row(trial, INTERRUPTED, "", latest, best)
    return Row(trial, final.status, final.reason, latest, best)


def _add_evaluations(row: Row, length_evals: Mapping[int, EvaluatedLoss], test: EvaluatedLoss | None) -> Row:
    """Return a row with the values of `raylm evaluate`."""
    return replace(
        row,
        length_evals={length: value.loss for length, value in length_evals.items()},
        length_precisions={length: value.precision for length, value in length_evals.items() if value.precision},
        test_loss=test.loss if test else None,
        test_precision=test.precision if test else None,
    )


def write_final_status(storage: Storage, launch: str, trial: TrialConfig, status: str, reason: str) -> None:
    """Record that a trial was stopped early, diverged or failed in a launch."""
    storage.write(f"{launch}/{trial.run_name}/{STATUS_FILE}", json_files.encode(FinalStatus(trial.id, status, reason)))


# ---- launches -----------------------------------------------------------------------------------------------------


def list_launches(storage: Storage) -> list[str]:
    """Return the names of the launches' folders, oldest first."""
    entries = storage.list_entries(recursive=False)
    launches = [name for name, size in entries.items() if size is None and LAUNCH_PATTERN.fullmatch(name)]
    return sorted(launches, key=parse_launch_number)


def parse_launch_number(launch: str) -> int:
    """Return the number of a launch from the name of its folder."""
    return int(launch.removeprefix("launch-"))


def next_launch_name(launches: Iterable[str]) -> str:
    """Return the folder name of the launch after these."""
    return f"launch-{max(map(parse_launch_number, launches), default=0) + 1:03d}"


# ---- checkpoints --------------------------------------------------------------------------------------------------


def find_checkpoints(storage: Storage, trial: TrialConfig, launches: Iterable[str]) -> Iterator[SavedCheckpoint]:
    """Yield the checkpoints of a trial in these launches, in any order. The content of their files is not verified."""
    yield from _find_checkpoints(storage, trial, _list_trial_entries(storage, trial, launches))


def _list_trial_entries(storage: Storage, trial: TrialConfig, launches: Iterable[str]) -> dict[str, int | None]:
    """Return the files and folders of a trial in these launches."""
    entries: dict[str, int | None] = {}
    for launch in launches:
        for folder in trial.folder_names:
            entries |= storage.list_entries(f"{launch}/{folder}")
    return entries


def _find_checkpoints(storage: Storage, trial: TrialConfig, entries: Entries) -> Iterator[SavedCheckpoint]:
    for name in entries:
        folder, _, file = name.rpartition("/")
        if file != manifest.MANIFEST_FILE or not CHECKPOINT_PATTERN.fullmatch(folder.rpartition("/")[2]):
            continue
        prefix = f"{folder}/"
        sizes = {other.removeprefix(prefix): size for other, size in entries.items() if other.startswith(prefix)}
        try:
            text = json_files.read_text(storage, name)
        except DamagedFileError:
            continue
        content = manifest.parse(text, sizes) if text else None
        if content is not None and content.trial_id == trial.id:
            yield SavedCheckpoint(folder, content.progress, content.weights_hash)


@contextmanager
def open_latest_checkpoint(storage: Storage, trial: TrialConfig, launches: Iterable[str]) -> Iterator[Path | None]:
    """Yield a local folder with the checkpoint to resume from, or None.

    This is the latest one whose files all have the content that its manifest records.
    """
    checkpoints = find_checkpoints(storage, trial, launches)
    for checkpoint in sorted(checkpoints, key=lambda checkpoint: checkpoint.progress.step, reverse=True):
        with storage.local_copy(checkpoint.folder) as folder:
            if manifest.verify(folder):
                yield folder
                return
    yield None


@contextmanager
def open_best_checkpoint(results: SweepRows, row: Row) -> Iterator[Path]:
    """Yield a local folder with the checkpoint of a row's best epoch.

    Raises:
        UserError: if there is none, or a file of it does not have the content that its manifest records.
    """
    if row.best_checkpoint is None:
        raise UserError(f"{row.config.run_name} ({row.status}) has no checkpoint of an evaluated epoch")
    with results.storage.local_copy(row.best_checkpoint.folder) as folder:
        if manifest.verify(folder) is None:
            uri = results.storage.uri_of(row.best_checkpoint.folder)
            raise UserError(f"{uri} is damaged; move it away and run the sweep again")
        yield folder


def prune_checkpoints(results: SweepRows) -> None:
    """Remove the checkpoints of finished trials except the best and the latest."""
    entries = _group_by_trial(results.storage.list_entries())
    for row in results.rows:
        kept = {checkpoint.folder for checkpoint in (row.latest_checkpoint, row.best_checkpoint) if checkpoint}
        if row.is_finished and row.latest_checkpoint is not None:
            for name, size in entries(row.config).items():
                if size is None and CHECKPOINT_PATTERN.fullmatch(name.rpartition("/")[2]) and name not in kept:
                    try:
                        results.storage.remove(name)
                    except OSError as error:  # as of another user's launch: no reason to lose the table
                        log.warning("%s cannot be removed: %s", results.storage.uri_of(name), error.strerror or error)


# ---- values of `raylm evaluate` -----------------------------------------------------------------------------------


def load_length_evals(storage: Storage) -> LengthEvals:
    """Return the recorded evaluations at other context lengths; empty if there are none or the file is damaged."""
    content = json_files.load_or_none(storage, LENGTH_EVALS_FILE, dict[str, dict[int, float | EvaluatedLoss]])
    return {weights: _parse_losses(losses) for weights, losses in (content or {}).items()}


def write_length_evals(storage: Storage, length_evals: LengthEvals) -> None:
    """Write evaluations at other context lengths; losses that are not finite are left out."""
    content = {weights: _format_losses(losses) for weights, losses in length_evals.items()}
    storage.write(LENGTH_EVALS_FILE, json_files.encode(content))


def load_test_losses(storage: Storage) -> TestLosses:
    """Return the recorded losses on test splits; empty if there are none or the file is damaged."""
    return _parse_losses(json_files.load_or_none(storage, TEST_LOSSES_FILE, dict[str, float | EvaluatedLoss]) or {})


def write_test_losses(storage: Storage, test_losses: TestLosses) -> None:
    """Write losses on test splits; those that are not finite are left out."""
    storage.write(TEST_LOSSES_FILE, json_files.encode(_format_losses(test_losses)))


def _parse_losses(losses: Mapping[Key, float | EvaluatedLoss]) -> dict[Key, EvaluatedLoss]:
    """Return losses as a file has them; versions before have written numbers alone."""
    return {key: loss if isinstance(loss, EvaluatedLoss) else EvaluatedLoss(loss) for key, loss in losses.items()}


def _format_losses(losses: Mapping[Key, EvaluatedLoss]) -> dict[Key, float | EvaluatedLoss]:
    """Return the finite losses for a file, those without a precision as numbers alone."""
    finite = {key: value for key, value in losses.items() if math.isfinite(value.loss)}
    return {key: value if value.precision else value.loss for key, value in finite.items()}
