"""Rows of a results folder from checkpoints and final statuses, whatever is damaged or missing."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from checkpoints import TRIAL, save_checkpoint
from oracle import find_newest_checkpoint

from raylm.config.trial import TrialConfig
from raylm.results import manifest
from raylm.results.folder import (
    LENGTH_EVALS_FILE,
    STATUS_FILE,
    EvaluatedLoss,
    find_checkpoints,
    list_launches,
    load_length_evals,
    load_rows,
    next_launch_name,
    open_latest_checkpoint,
    prune_checkpoints,
    write_final_status,
    write_length_evals,
)
from raylm.results.logs import match_row, read_logs
from raylm.results.progress import EvalMetrics
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, STOPPED, Row, SweepRows
from raylm.results.storage import Folder

OTHER = TrialConfig(seed=2)


def read_row(folder: Path, trial: TrialConfig = TRIAL) -> Row:
    return load_rows(Folder(folder), [trial]).rows[0]


def checkpoint_folders(folder: Path, row: Row) -> tuple[Path | None, Path | None]:
    """Return the folders of the latest and of the best checkpoint."""
    latest, best = row.latest_checkpoint, row.best_checkpoint
    return (folder / latest.folder if latest else None), (folder / best.folder if best else None)


# ---- names --------------------------------------------------------------------------------------------------------


def test_trial_of_an_older_folder_is_found_under_its_shorter_name_and_resumed_under_the_longer(tmp_path: Path) -> None:
    trial = TrialConfig(dropout=0.5, optimizer="adamw", epochs=3)
    longer, shorter = trial.folder_names
    save_checkpoint(tmp_path, "launch-001/0", 5.0, trial=trial)
    (tmp_path / "launch-001" / longer).rename(tmp_path / "launch-001" / shorter)
    (tmp_path / "launch-001" / shorter / "log.txt").write_text("before\n")
    (tmp_path / "launch-001" / shorter / STATUS_FILE).write_text(
        json.dumps({"trial_id": trial.id, "status": FAILED, "reason": "no memory"})
    )
    row = read_row(tmp_path, trial)
    assert (row.status, row.reason, row.metrics and row.metrics.epoch) == (FAILED, "no memory", 1)
    with open_latest_checkpoint(Folder(tmp_path), trial, ["launch-001"]) as checkpoint:
        assert checkpoint == tmp_path / "launch-001" / shorter / "checkpoint_000000"

    save_checkpoint(tmp_path, "launch-002/1", 5.0, 3.0, trial=trial)
    (tmp_path / "launch-002" / longer / "log.txt").write_text("after\n")
    assert read_row(tmp_path, trial).status == INTERRUPTED
    write_final_status(Folder(tmp_path), "launch-002", trial, STOPPED, "not among the best")
    row = read_row(tmp_path, trial)
    assert (row.status, row.metrics and row.metrics.val_loss) == (STOPPED, 3.0)
    results = SweepRows(Folder(tmp_path), [row])
    assert [text for _, text in read_logs(results, row)] == ["before\n", "after\n"]
    assert match_row(results, shorter) is match_row(results, shorter[:-3]) is results.get_row(longer) is row
    prune_checkpoints(results)
    assert not (tmp_path / "launch-001" / shorter / "checkpoint_000000").exists()


# ---- rows ---------------------------------------------------------------------------------------------------------


def test_trial_without_a_folder_is_pending(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "launch-001/0", 5.0, num_epochs=1, trial=OTHER)
    row = read_row(tmp_path)
    assert (row.status, row.reason, row.metrics, row.is_finished) == (PENDING, "", None, False)
    assert read_row(tmp_path / "missing").status == PENDING


def test_row_is_done_at_the_last_step_and_has_the_metrics_of_the_best_epoch(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "launch-001/0", 5.0)
    best = save_checkpoint(tmp_path, "launch-001/1", 5.0, 3.0)
    latest = save_checkpoint(tmp_path, "launch-001/2", 5.0, 3.0, 4.0)
    row = read_row(tmp_path)
    assert row.status == DONE and row.is_finished and checkpoint_folders(tmp_path, row) == (latest, best)
    assert row.metrics == EvalMetrics(2, 20, 200, 4.0, 3.0, 5.0)


def test_first_of_equally_good_epochs_is_the_best(tmp_path: Path) -> None:
    best = save_checkpoint(tmp_path, "launch-001/0", 3.0, num_epochs=2)
    latest = save_checkpoint(tmp_path, "launch-001/1", 3.0, 3.0, num_epochs=2)
    assert checkpoint_folders(tmp_path, read_row(tmp_path)) == (latest, best)


def test_row_is_interrupted_between_the_first_and_the_last_step(tmp_path: Path) -> None:
    (tmp_path / "launch-001" / TRIAL.run_name).mkdir(parents=True)
    row = read_row(tmp_path)
    assert row.status == INTERRUPTED and checkpoint_folders(tmp_path, row) == (None, None)
    latest = save_checkpoint(tmp_path, "launch-001/0", 5.0)
    row = read_row(tmp_path)
    assert row.status == INTERRUPTED and not row.is_finished
    assert checkpoint_folders(tmp_path, row) == (latest, latest)


def test_best_checkpoint_may_be_of_an_earlier_launch_than_the_latest(tmp_path: Path) -> None:
    best = save_checkpoint(tmp_path, "launch-001/0", 3.0)
    save_checkpoint(tmp_path, "launch-001/1", 3.0, 4.0)
    latest = save_checkpoint(tmp_path, "launch-002/0", 3.0, 4.0, 5.0)
    row = read_row(tmp_path)
    assert row.status == DONE and checkpoint_folders(tmp_path, row) == (latest, best)


def test_best_epoch_keeps_its_losses_without_its_checkpoint(tmp_path: Path) -> None:
    latest = save_checkpoint(tmp_path, "launch-001/1", 3.0, 4.0, num_epochs=2)
    row = read_row(tmp_path)
    assert checkpoint_folders(tmp_path, row) == (latest, None) and row.metrics is not None and row.metrics.epoch == 1


# ---- invalid checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", manifest.MANIFEST_FILE])
@pytest.mark.parametrize("left", [None, 0.0, 0.01, 0.5, 0.99])
def test_checkpoint_with_a_missing_or_truncated_file_is_ignored(tmp_path: Path, file: str, left: float | None) -> None:
    older = save_checkpoint(tmp_path, "launch-001/0", 3.0, num_epochs=2)
    path = save_checkpoint(tmp_path, "launch-001/1", 3.0, 2.0, num_epochs=2) / file
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    assert read_row(tmp_path).status == INTERRUPTED and checkpoint_folders(tmp_path, read_row(tmp_path)) == (
        older,
        older,
    )
    assert find_newest_checkpoint(tmp_path, TRIAL) == older


@pytest.mark.parametrize("content", ["[]", "null", '"text"', '{"version": 2}', '{"version": 1}', '{"files": {}}'])
def test_checkpoint_with_an_invalid_manifest_is_ignored(tmp_path: Path, content: str) -> None:
    (save_checkpoint(tmp_path, "launch-001/0", 3.0, num_epochs=1) / manifest.MANIFEST_FILE).write_text(content)
    assert (
        read_row(tmp_path).status == INTERRUPTED
        and list(find_checkpoints(Folder(tmp_path), TRIAL, list_launches(Folder(tmp_path)))) == []
    )


def test_checkpoint_of_another_trial_is_ignored(tmp_path: Path) -> None:
    foreign = save_checkpoint(tmp_path, "launch-001/0", 3.0, num_epochs=1, trial=OTHER)
    foreign.parent.rename(tmp_path / "launch-001" / TRIAL.run_name)
    assert read_row(tmp_path).status == INTERRUPTED and find_newest_checkpoint(tmp_path, TRIAL) is None


def test_trial_resumes_from_the_latest_checkpoint_that_verifies(tmp_path: Path) -> None:
    oldest = save_checkpoint(tmp_path, "launch-001/0", 5.0)
    older = save_checkpoint(tmp_path, "launch-002/0", 5.0, 4.0)
    last = save_checkpoint(tmp_path, "launch-001/7", 5.0, 4.0, 3.0)
    for checkpoint, next_latest in ((last, older), (older, oldest), (oldest, None)):
        assert find_newest_checkpoint(tmp_path, TRIAL) == checkpoint
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(b"W" + weights.read_bytes()[1:])
        folders = [
            tmp_path / saved.folder
            for saved in find_checkpoints(Folder(tmp_path), TRIAL, list_launches(Folder(tmp_path)))
        ]
        assert checkpoint in folders and manifest.verify(checkpoint) is None
        assert find_newest_checkpoint(tmp_path, TRIAL) == next_latest


# ---- final statuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [FAILED, DIVERGED, STOPPED])
def test_final_status_has_a_reason_and_keeps_the_losses(tmp_path: Path, status: str) -> None:
    latest = save_checkpoint(tmp_path, "launch-001/0", 5.0)
    write_final_status(Folder(tmp_path), "launch-001", TRIAL, status, "out of memory, twice")
    row = read_row(tmp_path)
    assert (row.status, row.reason, row.is_finished) == (status, "out of memory, twice", True)
    assert checkpoint_folders(tmp_path, row) == (latest, latest) and row.metrics is not None


def test_final_status_needs_no_checkpoint(tmp_path: Path) -> None:
    write_final_status(Folder(tmp_path), "launch-001", TRIAL, FAILED, "no GPU")
    row = read_row(tmp_path)
    assert (row.status, row.reason, row.latest_checkpoint) == (FAILED, "no GPU", None)
    assert read_row(tmp_path, OTHER).status == PENDING


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "\0", "{}", '{"status": "failed"}']
    + [json.dumps({"trial_id": OTHER.id, "status": "failed", "reason": "x"})]
    + [json.dumps({"trial_id": TRIAL.id, "status": status, "reason": "x"}) for status in ("done", "missing", None)],
)
def test_trial_with_an_invalid_final_status_is_interrupted(tmp_path: Path, content: str) -> None:
    write_final_status(Folder(tmp_path), "launch-001", TRIAL, FAILED, "x")
    (tmp_path / "launch-001" / TRIAL.run_name / STATUS_FILE).write_text(content)
    assert (read_row(tmp_path).status, read_row(tmp_path).reason) == (INTERRUPTED, "")


def test_final_status_of_the_last_launch_with_the_trial_counts(tmp_path: Path) -> None:
    write_final_status(Folder(tmp_path), "launch-001", TRIAL, FAILED, "first")
    (tmp_path / "launch-002").mkdir()
    assert read_row(tmp_path).reason == "first"
    (tmp_path / "launch-003" / TRIAL.run_name).mkdir(parents=True)
    assert (read_row(tmp_path).status, read_row(tmp_path).reason) == (INTERRUPTED, "")
    write_final_status(Folder(tmp_path), "launch-010", TRIAL, DIVERGED, "last")
    assert (read_row(tmp_path).status, read_row(tmp_path).reason) == (DIVERGED, "last")


def test_complete_checkpoint_takes_precedence_over_a_final_status(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "launch-001/0", 3.0, num_epochs=1)
    write_final_status(Folder(tmp_path), "launch-002", TRIAL, FAILED, "after all was done")
    assert (read_row(tmp_path).status, read_row(tmp_path).reason) == (DONE, "")


def test_launches_are_sorted_by_number(tmp_path: Path) -> None:
    for name in ("launch-1000", "launch-002", "launch-999", "launch-010", "launch-old", "launch-", "other-003"):
        (tmp_path / name).mkdir()
    (tmp_path / "launch-004").write_text("no folder")
    names = list_launches(Folder(tmp_path))
    assert names == ["launch-002", "launch-010", "launch-999", "launch-1000"]


# ---- the whole folder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
def test_rows_and_launches_do_not_depend_on_file_times(tmp_path: Path, backwards: bool) -> None:
    best = save_checkpoint(tmp_path, "launch-001/0", 3.0)
    write_final_status(Folder(tmp_path), "launch-001", OTHER, FAILED, "once")
    latest = save_checkpoint(tmp_path, "launch-002/0", 3.0, 4.0)
    write_final_status(Folder(tmp_path), "launch-002", OTHER, STOPPED, "by the scheduler")
    for number, path in enumerate(sorted(tmp_path.rglob("*"))):
        os.utime(path, (0, 1_000_000 + (-number if backwards else number)))

    assert checkpoint_folders(tmp_path, read_row(tmp_path)) == (latest, best)
    assert find_newest_checkpoint(tmp_path, TRIAL) == latest
    assert read_row(tmp_path, OTHER).status == STOPPED
    assert next_launch_name(list_launches(Folder(tmp_path))) == "launch-003"


def test_length_evals_of_earlier_versions_may_have_losses_that_are_not_finite(tmp_path: Path) -> None:
    storage = Folder(tmp_path)
    storage.write(LENGTH_EVALS_FILE, '{"a": {"64": 3.0, "128": NaN}, "b": {"64": Infinity}}')
    length_evals = load_length_evals(storage)
    assert length_evals["a"][64] == EvaluatedLoss(3.0) and math.isnan(length_evals["a"][128].loss)
    write_length_evals(storage, length_evals)
    assert load_length_evals(storage) == {"a": {64: EvaluatedLoss(3.0)}, "b": {}}
    assert json.loads(storage.read(LENGTH_EVALS_FILE)) == {"a": {"64": 3.0}, "b": {}}


def test_prune_keeps_the_best_and_the_latest_checkpoint_of_finished_trials(tmp_path: Path) -> None:
    failed, unfinished = TrialConfig(seed=3), TrialConfig(seed=4)
    truncated = save_checkpoint(tmp_path, "launch-001/2", 5.0, 3.0, 4.0)
    (truncated / "model.safetensors").write_bytes(b"")
    removed = [
        truncated,
        save_checkpoint(tmp_path, "launch-001/0", 5.0),
        save_checkpoint(tmp_path, "launch-001/0", 5.0, trial=failed),
    ]
    best, latest = (
        save_checkpoint(tmp_path, "launch-001/1", 5.0, 3.0),
        save_checkpoint(tmp_path, "launch-002/0", 5.0, 3.0, 4.0),
    )
    kept = [
        best,
        latest,
        save_checkpoint(tmp_path, "launch-001/1", 5.0, 4.0, trial=failed),
        save_checkpoint(tmp_path, "launch-001/0", 5.0, trial=unfinished),
        save_checkpoint(tmp_path, "launch-001/1", 5.0, 4.0, trial=unfinished),
        save_checkpoint(tmp_path, "launch-001/0", 5.0, trial=OTHER),
    ]
    write_final_status(Folder(tmp_path), "launch-001", failed, FAILED, "x")
    trials = [TRIAL, failed, unfinished]
    prune_checkpoints(load_rows(Folder(tmp_path), trials))
    assert [path for path in removed if path.exists()] == []
    assert sorted(tmp_path.glob("launch-*/*/checkpoint_*")) == sorted(kept)
    results = load_rows(Folder(tmp_path), trials)
    assert [row.status for row in results.rows] == [DONE, FAILED, INTERRUPTED]
    assert checkpoint_folders(tmp_path, results.rows[0]) == (latest, best)
