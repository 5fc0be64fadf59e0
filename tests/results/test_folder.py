"""What lies in a results folder decides what is done, what goes on and from where, and what must run again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from oracle import find_newest_checkpoint
from ray.tune.search.sample import Categorical

from raylm import load_results
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results import manifest, sweep_record
from raylm.results.folder import (
    STATUS_FILE,
    find_checkpoints,
    find_results,
    list_launches,
    load_rows,
    next_launch_name,
    prune_checkpoints,
    write_final_status,
)
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, STOPPED, Row
from raylm.results.storage import Folder
from raylm.results.sweep_record import (
    DataRecord,
    DeviceRecord,
    HardwareRecord,
    LaunchRecord,
    ModelRecord,
    SlotRecord,
    SweepRecord,
)

TRIAL, OTHER = TrialConfig(seed=1), TrialConfig(seed=2)
STEPS_PER_EPOCH = 10
LAUNCH = LaunchRecord(
    1,
    "888c2713",
    "2026-11-25T02:15:55+00:00",
    {"raylm": "0.1.0"},
    "3.11.7",
    None,
    HardwareRecord("x86_64", "Linux", 2, "T4"),
    "float32",
    {"cpu": 1, "gpu": 0.5},
    SlotRecord(DeviceRecord("T4", None, 8.1, 320, 14.6), 0.5, 2, "float32"),
    [ModelRecord("gpt2-nano", pretrained=True)],
    [DataRecord("pydocs", "gpt2-nano", "3ca6", "bc05", 103_708, 60_842, 8921, 4659)],
)


def save(folder: Path, place: str, *val_losses: float, of: int = 3, config: TrialConfig = TRIAL) -> Path:
    """Writes the checkpoint `launch-001/0` at the end of as many epochs as there are val losses."""
    launch, _, number = place.partition("/")
    checkpoint = folder / launch / config.run_name / f"checkpoint_{int(number):06d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(f"weights after {len(val_losses)}".encode())
    progress = Progress(of * STEPS_PER_EPOCH, 1, step=len(val_losses) * STEPS_PER_EPOCH)
    for epoch, loss in enumerate(val_losses, start=1):
        progress.evaluations.append(EvalMetrics(epoch, epoch * STEPS_PER_EPOCH, 100 * epoch, loss + 1, loss, loss + 2))
    manifest.write(checkpoint, config, progress)
    return checkpoint


def row(folder: Path, config: TrialConfig = TRIAL) -> Row:
    return load_rows(Folder(folder), [config]).rows[0]


def places(folder: Path, found: Row) -> tuple[Path | None, Path | None]:
    """The folders of the latest and of the best checkpoint."""
    latest, best = (folder / one.folder if one else None for one in (found.latest_checkpoint, found.best_checkpoint))
    return latest, best


# ---- rows ---------------------------------------------------------------------------------------------------------


def test_a_row_that_was_never_begun(tmp_path: Path) -> None:
    save(tmp_path, "launch-001/0", 5.0, of=1, config=OTHER)
    found = row(tmp_path)
    assert (found.status, found.reason, found.metrics, found.is_finished) == (PENDING, "", None, False)
    assert row(tmp_path / "no such folder").status == PENDING


def test_a_row_is_done_at_its_last_step_and_shows_its_best_epoch(tmp_path: Path) -> None:
    save(tmp_path, "launch-001/0", 5.0)
    best = save(tmp_path, "launch-001/1", 5.0, 3.0)
    latest = save(tmp_path, "launch-001/2", 5.0, 3.0, 4.0)
    found = row(tmp_path)
    assert found.status == DONE and found.is_finished and places(tmp_path, found) == (latest, best)
    assert found.metrics == EvalMetrics(2, 20, 200, 4.0, 3.0, 5.0)


def test_the_first_of_equally_good_epochs_is_the_best(tmp_path: Path) -> None:
    best = save(tmp_path, "launch-001/0", 3.0, of=2)
    latest = save(tmp_path, "launch-001/1", 3.0, 3.0, of=2)
    assert places(tmp_path, row(tmp_path)) == (latest, best)


def test_a_row_is_interrupted_between_its_first_and_its_last_step(tmp_path: Path) -> None:
    (tmp_path / "launch-001" / TRIAL.run_name).mkdir(parents=True)
    assert row(tmp_path).status == INTERRUPTED and places(tmp_path, row(tmp_path)) == (None, None)
    latest = save(tmp_path, "launch-001/0", 5.0)
    found = row(tmp_path)
    assert found.status == INTERRUPTED and not found.is_finished and places(tmp_path, found) == (latest, latest)


def test_the_best_epoch_may_be_of_an_earlier_launch_than_the_latest(tmp_path: Path) -> None:
    best = save(tmp_path, "launch-001/0", 3.0)
    save(tmp_path, "launch-001/1", 3.0, 4.0)
    latest = save(tmp_path, "launch-002/0", 3.0, 4.0, 5.0)
    found = row(tmp_path)
    assert found.status == DONE and places(tmp_path, found) == (latest, best)


def test_a_best_epoch_whose_checkpoint_is_gone_keeps_its_losses(tmp_path: Path) -> None:
    latest = save(tmp_path, "launch-001/1", 3.0, 4.0, of=2)
    found = row(tmp_path)
    assert places(tmp_path, found) == (latest, None) and found.metrics is not None and found.metrics.epoch == 1


# ---- checkpoints that are none ------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", manifest.MANIFEST_FILE])
@pytest.mark.parametrize("left", [None, 0.0, 0.01, 0.5, 0.99])
def test_a_checkpoint_with_a_missing_or_cut_file_does_not_count(tmp_path: Path, file: str, left: float | None) -> None:
    older = save(tmp_path, "launch-001/0", 3.0, of=2)
    path = save(tmp_path, "launch-001/1", 3.0, 2.0, of=2) / file
    if left is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    assert row(tmp_path).status == INTERRUPTED and places(tmp_path, row(tmp_path)) == (older, older)
    assert find_newest_checkpoint(tmp_path, TRIAL) == older


@pytest.mark.parametrize("content", ["[]", "null", '"text"', '{"version": 2}', '{"version": 1}', '{"files": {}}'])
def test_a_checkpoint_with_a_strange_manifest_does_not_count(tmp_path: Path, content: str) -> None:
    (save(tmp_path, "launch-001/0", 3.0, of=1) / manifest.MANIFEST_FILE).write_text(content)
    assert row(tmp_path).status == INTERRUPTED and list(find_checkpoints(Folder(tmp_path), TRIAL)) == []


def test_a_checkpoint_of_another_trial_does_not_count(tmp_path: Path) -> None:
    foreign = save(tmp_path, "launch-001/0", 3.0, of=1, config=OTHER)
    foreign.parent.rename(tmp_path / "launch-001" / TRIAL.run_name)
    assert row(tmp_path).status == INTERRUPTED and find_newest_checkpoint(tmp_path, TRIAL) is None


def test_a_trial_goes_on_from_the_newest_checkpoint_whose_content_verifies(tmp_path: Path) -> None:
    oldest = save(tmp_path, "launch-001/0", 5.0)
    older = save(tmp_path, "launch-002/0", 5.0, 4.0)
    last = save(tmp_path, "launch-001/7", 5.0, 4.0, 3.0)
    for checkpoint, next_one in ((last, older), (older, oldest), (oldest, None)):
        assert find_newest_checkpoint(tmp_path, TRIAL) == checkpoint
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(b"W" + weights.read_bytes()[1:])
        there = [tmp_path / one.folder for one in find_checkpoints(Folder(tmp_path), TRIAL)]
        assert checkpoint in there and manifest.verify(checkpoint) is None
        assert find_newest_checkpoint(tmp_path, TRIAL) == next_one


# ---- trials that ended without their last step --------------------------------------------------------------------


@pytest.mark.parametrize("status", [FAILED, DIVERGED, STOPPED])
def test_a_row_that_failed_diverged_or_was_stopped_keeps_its_reason_and_its_losses(tmp_path: Path, status: str) -> None:
    latest = save(tmp_path, "launch-001/0", 5.0)
    write_final_status(Folder(tmp_path), "launch-001", TRIAL, status, "out of memory, twice")
    found = row(tmp_path)
    assert (found.status, found.reason, found.is_finished) == (status, "out of memory, twice", True)
    assert places(tmp_path, found) == (latest, latest) and found.metrics is not None


def test_an_ending_is_written_where_nothing_else_was(tmp_path: Path) -> None:
    write_final_status(Folder(tmp_path), "launch-001", TRIAL, FAILED, "no GPU")
    found = row(tmp_path)
    assert (found.status, found.reason, found.latest_checkpoint) == (FAILED, "no GPU", None)
    assert row(tmp_path, OTHER).status == PENDING


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "\0", "{}", '{"status": "failed"}']
    + [json.dumps({"trial_id": OTHER.id, "status": "failed", "reason": "x"})]
    + [json.dumps({"trial_id": TRIAL.id, "status": status, "reason": "x"}) for status in ("done", "missing", None)],
)
def test_a_damaged_or_foreign_ending_counts_as_interrupted(tmp_path: Path, content: str) -> None:
    write_final_status(Folder(tmp_path), "launch-001", TRIAL, FAILED, "x")
    (tmp_path / "launch-001" / TRIAL.run_name / STATUS_FILE).write_text(content)
    assert (row(tmp_path).status, row(tmp_path).reason) == (INTERRUPTED, "")


def test_the_ending_of_the_last_launch_that_tried_counts(tmp_path: Path) -> None:
    write_final_status(Folder(tmp_path), "launch-001", TRIAL, FAILED, "first")
    (tmp_path / "launch-002").mkdir()
    assert row(tmp_path).reason == "first"
    (tmp_path / "launch-003" / TRIAL.run_name).mkdir(parents=True)
    assert (row(tmp_path).status, row(tmp_path).reason) == (INTERRUPTED, "")
    write_final_status(Folder(tmp_path), "launch-010", TRIAL, DIVERGED, "last")
    assert (row(tmp_path).status, row(tmp_path).reason) == (DIVERGED, "last")


def test_a_finished_checkpoint_goes_before_an_ending(tmp_path: Path) -> None:
    save(tmp_path, "launch-001/0", 3.0, of=1)
    write_final_status(Folder(tmp_path), "launch-002", TRIAL, FAILED, "after all was done")
    assert (row(tmp_path).status, row(tmp_path).reason) == (DONE, "")


def test_launches_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("launch-1000", "launch-002", "launch-999", "launch-010", "launch-old", "launch-", "other-003"):
        (tmp_path / name).mkdir()
    (tmp_path / "launch-004").write_text("no folder")
    names = list_launches(Folder(tmp_path))
    assert names == ["launch-002", "launch-010", "launch-999", "launch-1000"]


# ---- the whole folder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backwards", [False, True])
def test_no_row_and_no_launch_depends_on_the_clock(tmp_path: Path, backwards: bool) -> None:
    best = save(tmp_path, "launch-001/0", 3.0)
    write_final_status(Folder(tmp_path), "launch-001", OTHER, FAILED, "once")
    latest = save(tmp_path, "launch-002/0", 3.0, 4.0)
    write_final_status(Folder(tmp_path), "launch-002", OTHER, STOPPED, "by the scheduler")
    for number, path in enumerate(sorted(tmp_path.rglob("*"))):
        os.utime(path, (0, 1_000_000 + (-number if backwards else number)))

    assert places(tmp_path, row(tmp_path)) == (latest, best)
    assert find_newest_checkpoint(tmp_path, TRIAL) == latest
    assert row(tmp_path, OTHER).status == STOPPED
    assert next_launch_name(Folder(tmp_path)) == "launch-003"


def test_prune_keeps_the_best_and_the_latest_of_rows_that_ended(tmp_path: Path) -> None:
    failed, going = TrialConfig(seed=3), TrialConfig(seed=4)
    first = save(tmp_path, "launch-001/0", 5.0)
    kept = [save(tmp_path, "launch-001/1", 5.0, 3.0), save(tmp_path, "launch-002/0", 5.0, 3.0, 4.0)]
    cut = save(tmp_path, "launch-001/2", 5.0, 3.0, 4.0)
    (cut / "model.safetensors").write_bytes(b"")
    gone = save(tmp_path, "launch-001/0", 5.0, config=failed)
    kept += [save(tmp_path, "launch-001/1", 5.0, 4.0, config=failed)]
    write_final_status(Folder(tmp_path), "launch-001", failed, FAILED, "x")
    kept += [save(tmp_path, f"launch-001/{n}", *losses, config=going) for n, losses in enumerate([(5.0,), (5.0, 4.0)])]
    kept += [save(tmp_path, "launch-001/0", 5.0, config=OTHER)]
    prune_checkpoints(load_rows(Folder(tmp_path), [TRIAL, failed, going]))
    assert not first.exists() and not cut.exists() and not gone.exists()
    assert sorted(tmp_path.glob("launch-*/*/checkpoint_*")) == sorted(kept)
    again = load_rows(Folder(tmp_path), [TRIAL, failed, going])
    assert [one.status for one in again.rows] == [DONE, FAILED, INTERRUPTED]
    assert places(tmp_path, again.rows[0]) == (kept[1], kept[0])


def test_the_best_row_is_a_done_one(tmp_path: Path) -> None:
    trials = [TrialConfig(seed=seed) for seed in range(5)]
    save(tmp_path, "launch-001/0", 1.0, of=2, config=trials[0])
    write_final_status(Folder(tmp_path), "launch-001", trials[0], DIVERGED, "a loss is not finite")
    save(tmp_path, "launch-001/0", 1.5, of=2, config=trials[1])
    save(tmp_path, "launch-001/0", 3.0, of=1, config=trials[2])
    save(tmp_path, "launch-001/0", 1.2, of=2, config=trials[4])
    write_final_status(Folder(tmp_path), "launch-001", trials[4], STOPPED, "it is not among the best third")
    none = load_rows(Folder(tmp_path), [*trials[:2], trials[4]])
    assert none.best_by_dataset == {}
    with pytest.raises(UserError, match="no finished row yet"):
        none.best()
    save(tmp_path, "launch-001/0", 2.0, of=1, config=trials[3])
    found = load_rows(Folder(tmp_path), trials)
    assert found.best_by_dataset == {TRIAL.dataset: found.rows[3]}
    assert found.best() is found.best(TRIAL.dataset) is found.rows[3]
    counts = [found.count(DONE), found.count(DIVERGED, INTERRUPTED), found.count(STOPPED), found.count(PENDING)]
    assert counts == [2, 2, 1, 0]


def test_of_several_datasets_one_is_named(tmp_path: Path) -> None:
    save(tmp_path, "launch-001/0", 3.0, of=1)
    found = load_rows(Folder(tmp_path), [TRIAL, TrialConfig(dataset="imdb")])
    assert found.best(TRIAL.dataset) is found.rows[0]
    told = [
        (None, "name one: pydocs, imdb"),
        ("imbd", "'imbd'; expected pydocs or imdb"),
        ("imdb", "finished row of imdb"),
    ]
    for dataset, words in told:
        with pytest.raises(UserError, match=words):
            found.best(dataset)


def test_a_row_is_found_by_its_run_name(tmp_path: Path) -> None:
    found = load_rows(Folder(tmp_path), [TRIAL, OTHER])
    assert found.get_row(OTHER.run_name) is found.rows[1]
    with pytest.raises(UserError, match=f"did you mean '{TRIAL.run_name}'"):
        found.get_row(TRIAL.run_name[:-1])


def test_a_folder_is_read_in_the_order_of_its_record(tmp_path: Path) -> None:
    save(tmp_path, "launch-001/0", 3.0, of=1)
    trials = [{"id": one.id, "run": one.run_name, "config": one.as_dict()} for one in (OTHER, TRIAL)]
    (tmp_path / sweep_record.RECORD_FILE).write_text(
        json.dumps({"version": sweep_record.FORMAT_VERSION, "name": "s", "trials": trials})
    )
    found = load_results(str(tmp_path))
    assert Path(found.storage.uri) == tmp_path
    assert [(one.config, one.status) for one in found.rows] == [(OTHER, PENDING), (TRIAL, DONE)]


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    records = [SweepRecord("plain", [TRIAL, OTHER], launches=[LAUNCH])]
    records += [SweepRecord("searched", [OTHER, TRIAL], "optuna", frozenset({TRIAL.id}), 4, True, [LaunchRecord(2)])]
    for record in records:
        sweep_record.write(Folder(tmp_path), record)
        assert sweep_record.load(Folder(tmp_path)) == record
        assert load_results(tmp_path).record == record


def test_a_record_of_before_there_were_searches_is_one_of_a_grid(tmp_path: Path) -> None:
    trials = [{"id": TRIAL.id, "run": TRIAL.run_name, "config": TRIAL.as_dict()}]
    content = {"version": sweep_record.FORMAT_VERSION, "name": "old", "trials": trials, "launches": [{"number": 1}]}
    (tmp_path / sweep_record.RECORD_FILE).write_text(json.dumps(content))
    assert sweep_record.load(Folder(tmp_path)) == SweepRecord("old", [TRIAL], launches=[LaunchRecord(1)])


def test_a_search_stands_as_far_as_it_has_suggested_trials(tmp_path: Path) -> None:
    searched = Sweep(name="s", space={"seed": Categorical([1, 2, 3])}, search="random", num_samples=2)
    assert find_results(searched, Folder(tmp_path)).rows == []
    sweep_record.write(Folder(tmp_path), SweepRecord("s", [OTHER, TRIAL, TrialConfig(seed=3)], "random"))
    save(tmp_path, "launch-001/0", 3.0, of=1)
    assert [(one.config, one.status) for one in find_results(searched, Folder(tmp_path)).rows] == (
        [(OTHER, PENDING), (TRIAL, DONE)]
    )
    in_grid = Sweep(name="s", space={"seed": 1})
    assert [one.config for one in find_results(in_grid, Folder(tmp_path)).rows] == [TRIAL]


def test_a_folder_without_a_record_is_no_results_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert sweep_record.load(Folder(folder)) is None
        with pytest.raises(UserError, match="not a results folder"):
            load_results(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [(text, "is damaged") for text in ("", "{", "[]", "3", "null", "\0", "{}", '{"trials": []}')]
    + [(text, "is damaged") for text in ('{"version": 1}', '{"version": 1, "trials": [{}]}')]
    + [(f'{{"version": {version}, "trials": []}}', f"version {version}") for version in (0, 2, 99)],
)
def test_a_damaged_record_or_one_of_another_version(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / sweep_record.RECORD_FILE).write_text(content)
    with pytest.raises(UserError, match=words):
        load_results(tmp_path)
