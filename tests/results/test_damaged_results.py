"""Hostile locations and damaged files of results: loading gives rows, or one readable message."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_checkpoint
from hostile_values import assert_readable, assert_safe_folder_name, list_places
from hostile_values import isolated as isolated
from oracle import find_newest_checkpoint

from raylm import load_results
from raylm.config.sweep import Sweep
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import UserError
from raylm.planning.throughput import find_placement, placement_to_record
from raylm.results import manifest, sweep_record
from raylm.results.folder import LENGTH_EVALS_FILE, STATUS_FILE, load_row, write_final_status
from raylm.results.rows import DONE, FAILED, INTERRUPTED
from raylm.results.storage import Folder
from raylm.runner import run

pytestmark = pytest.mark.usefixtures("isolated")

# ---- invalid locations --------------------------------------------------------------------------------------------


def test_results_are_not_written_over_or_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for storage, name in ((tmp_path, "file"), (tmp_path / "file", "below"), (tmp_path / "file" / "further", "below")):
        with pytest.raises(UserError, match=r"cannot be written to .*--storage") as caught:
            run(Sweep(name=name, space={"seed": 1}), storage=str(storage), quiet=True)
        assert_readable(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_results_folder_that_cannot_be_locked_is_reported(tmp_path: Path, kind: str) -> None:
    (tmp_path / "s").mkdir()
    if kind == "link":
        (tmp_path / "mine").write_text("mine")
        (tmp_path / "s" / ".lock").symlink_to(tmp_path / "mine")
    else:
        (tmp_path / "s" / ".lock").mkdir()
    with pytest.raises(UserError, match=r"--storage") as caught:
        run(Sweep(name="s", space={"seed": 1}), storage=str(tmp_path), quiet=True)
    assert_readable(caught.value)
    assert kind == "folder" or (tmp_path / "mine").read_text() == "mine"


def test_results_are_not_read_from_a_path_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "record" / sweep_record.RECORD_FILE).mkdir(parents=True)
    for name in ("file", "file/below", "loop", "record", "nul\0", "x" * 300, "\ud800"):
        with pytest.raises(UserError) as caught:
            load_results(tmp_path / name)
        assert_readable(caught.value)


# ---- damaged files ------------------------------------------------------------------------------------------------

TRIALS = [TrialConfig(seed=1, learning_rate=1e-3), TrialConfig(seed=2, max_train_tokens=1000)]


def assert_rows_or_message(folder: Path) -> None:
    try:
        results = load_results(folder)
    except UserError as error:
        assert_readable(error)
        return
    for row in results.rows:
        assert_safe_folder_name(row.config.run_name)
    find_newest_checkpoint(folder, TRIALS[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a results folder with a trial that is done and one that failed after its first epoch."""
    folder = tmp_path / "sweep"
    save_checkpoint(folder, "launch-001/0", 5.0, num_epochs=2, trial=TRIALS[0])
    save_checkpoint(folder, "launch-001/1", 5.0, 4.0, num_epochs=2, trial=TRIALS[0])
    save_checkpoint(folder, "launch-001/0", 5.0, trial=TRIALS[1])
    write_final_status(Folder(folder), "launch-001", TRIALS[1], FAILED, "no memory")
    (folder / LENGTH_EVALS_FILE).write_text(json.dumps({"abc": {"64": 3.0}}))
    placement = find_placement(Resources(), "auto", "a100")
    assert placement is not None
    launch = sweep_record.LaunchRecord(
        1,
        versions={"raylm": "0"},
        slot=placement_to_record(placement),
        models=[sweep_record.ModelRecord("gpt2-nano", pretrained=True)],
        data=[sweep_record.DataRecord("pydocs", "gpt2-nano")],
    )
    sweep_record.write(
        Folder(folder),
        sweep_record.SweepRecord("sweep", TRIALS, failed_ids=frozenset([TRIALS[1].id]), launches=[launch]),
    )
    return folder


def test_undamaged_folder_has_a_done_and_a_failed_trial(folder: Path) -> None:
    assert [row.status for row in load_results(folder).rows] == [DONE, FAILED]


def test_truncated_record_is_reported_as_damaged(folder: Path) -> None:
    original = (folder / sweep_record.RECORD_FILE).read_bytes()
    for length in [*range(0, len(original), 3), len(original) - 1]:
        (folder / sweep_record.RECORD_FILE).write_bytes(original[:length])
        with pytest.raises(UserError, match="is damaged") as caught:
            load_results(folder)
        assert_readable(caught.value)


def test_checkpoint_with_a_truncated_manifest_is_ignored(folder: Path) -> None:
    trial_folder = folder / "launch-001" / TRIALS[0].run_name
    older, newer = sorted(trial_folder.glob("checkpoint_*"))
    original = (newer / manifest.MANIFEST_FILE).read_bytes()
    for length in range(0, len(original), 20):
        (newer / manifest.MANIFEST_FILE).write_bytes(original[:length])
        row = load_row(Folder(folder), TRIALS[0], ["launch-001"])
        assert row.status == INTERRUPTED and row.latest_checkpoint is not None
        assert folder / row.latest_checkpoint.folder == older == find_newest_checkpoint(folder, TRIALS[0])


def test_trial_with_a_truncated_status_is_interrupted(folder: Path) -> None:
    path = folder / "launch-001" / TRIALS[1].run_name / STATUS_FILE
    original = path.read_bytes()
    for length in range(len(original)):
        path.write_bytes(original[:length])
        row = load_row(Folder(folder), TRIALS[1], ["launch-001"])
        assert (row.status, row.reason) == (INTERRUPTED, "")


def find_file(folder: Path, name: str) -> Path:
    return next(path for path in sorted(folder.rglob(name)))


RESULT_FILES = [sweep_record.RECORD_FILE, manifest.MANIFEST_FILE, STATUS_FILE, LENGTH_EVALS_FILE]


@pytest.mark.parametrize("name", RESULT_FILES)
def test_random_bytes_in_a_file_give_rows_or_one_message(folder: Path, name: str) -> None:
    path, rng = find_file(folder, name), random.Random(0)
    original = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(original)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.choice([rng.randrange(256), *b'0e"{}[],:-'])
        path.write_bytes(damaged)
        assert_rows_or_message(folder)


HOSTILE_JSON: list[Any] = [None, True, -1, 1.5, 10**400, float("nan"), float("inf"), "", "\0", "../../x", "\x1b[2J\n"]
HOSTILE_JSON += ["\ud800", "x" * 300, [], ["x"], [None], {}, {"x": 1}]


@pytest.mark.parametrize("name", RESULT_FILES)
def test_any_json_value_in_a_file_gives_rows_or_one_message(folder: Path, name: str) -> None:
    path = find_file(folder, name)
    original, failures = path.read_text(), set()
    for number in range(len(list_places(json.loads(original)))):
        for value in [*HOSTILE_JSON, "removed"]:
            changed = json.loads(original)
            container, key = list_places(changed)[number]
            if value == "removed":
                del container[key]
            else:
                container[key] = value
            path.write_text(json.dumps(changed))
            try:
                assert_rows_or_message(folder)
            except Exception as error:
                failures.add(f"{key}={value!r:.20}: {type(error).__name__}: {str(error)[:100]}")
    assert sorted(failures) == []


@pytest.mark.parametrize("name", RESULT_FILES)
@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"a":' * 200_000, b"9" * 5000, b"\xff\xfe{}", b"\xef\xbb\xbf{}"])
def test_malformed_file_gives_rows_or_one_message(folder: Path, name: str, content: bytes) -> None:
    find_file(folder, name).write_bytes(content)
    assert_rows_or_message(folder)
