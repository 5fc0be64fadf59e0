"""Failing trackers: a tracker that refuses, hangs or dies costs its own metrics, and nothing waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from oracle import wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracked_trials import (
    API_KEY,
    NO_WANDB,
    OFFLINE,
    SWEEP_ID,
    TRIALS,
    TrackedTrials,
    files_with,
    track_launch,
    tracker_processes,
)
from tracked_trials import tracker_home as tracker_home
from wandb_lab import load_offline_runs, serve_wandb

from raylm.monitor.trackers import dispatcher
from raylm.monitor.trackers.options import TrackerOptions

PROGRAM = Path(__file__).parents[1] / "programs" / "track_and_die.py"


@pytest.mark.parametrize("behavior", ["401", "500", "stall", "unreachable"])
def test_runs_go_offline_if_the_server_fails(behavior: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    with serve_wandb(behavior if behavior != "unreachable" else "500") as server:
        url = server.url if behavior != "unreachable" else "http://127.0.0.1:9"
        monkeypatch.setenv("WANDB_BASE_URL", url)
        notes = track_launch(tmp_path / "small", TrackerOptions("online", url, None))
    assert len([note for note in notes if "runs are written offline from now on" in note]) == 1
    assert len([note for note in notes if note.startswith("mlflow: ")]) in (1, 2)  # the error, and the lost events
    runs = load_offline_runs(tmp_path / "small")
    assert sorted(run.id for run in runs) == sorted(f"{trial.id}-{SWEEP_ID}" for trial in TRIALS)
    assert {run.summary["best_epoch"] for run in runs} == {2}
    assert [len([row for row in run.history if "loss" in row]) for run in runs] == [30, 30]
    assert files_with(API_KEY, tmp_path) == []


def test_killed_tracker_costs_one_note_and_no_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "QUIET_WAIT_SECONDS", 3600.0)  # this test ends only if nothing waits
    with TrackedTrials(tmp_path / "small", NO_WANDB) as tracked:
        tracked.train(1, 10)
        (process,) = tracker_processes("tensorboard")
        process.kill()
        tracked.train(11, 30)
        wait_for(lambda: tracked.notes)
        tracked.end("done")
    (note,) = tracked.notes
    assert note.startswith("tensorboard: its process ended (-9)")


def test_hanging_tracker_blocks_no_event_and_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "QUIET_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(dispatcher, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(dispatcher, "MAX_QUEUED_EVENTS", 50)
    with TrackedTrials(tmp_path / "small", NO_WANDB) as tracked:
        (process,) = tracker_processes("tensorboard")
        process.send_signal(signal.SIGSTOP)
        for first_step in range(1, 3000, 30):  # more events than pipe and queue hold
            tracked.train(first_step, first_step + 29)
        tracked.end("done")
        assert process.status() == psutil.STATUS_STOPPED, "all calls have returned while the tracker hangs"
    assert not process.is_running()
    assert "waiting for tensorboard: 1 s at most" in tracked.notes
    assert "tensorboard: not finished after 1 s; the last metrics may be lost" in tracked.notes
    assert any("events were dropped because it was too slow" in note for note in tracked.notes)


def test_trackers_of_a_killed_command_finish_their_files(tmp_path: Path) -> None:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests / "monitor"), str(tests.parent)])
    command = [sys.executable, str(PROGRAM), str(tmp_path / "small")]
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (process_id,) = map(int, done.stdout.split())
    wait_for(lambda: not psutil.pid_exists(process_id))
    events = EventAccumulator(str(tmp_path / "small" / "tensorboard" / TRIALS[1].run_name))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 31))


def test_killed_service_of_wandb_is_reported(tmp_path: Path) -> None:
    with TrackedTrials(tmp_path / "small", OFFLINE) as tracked:
        tracked.train(1, 15)
        wait_for(lambda: len(list((tmp_path / "small").glob("wandb/offline-run-*/*.wandb"))) == 2)
        for process in psutil.Process().children(recursive=True):
            if process.name() == "wandb-core":
                process.kill()
        tracked.train(16, 30)
        tracked.end("done")
    assert any(note.startswith("wandb: ") and note.endswith("the last metrics may be lost") for note in tracked.notes)


def test_launch_without_events_waits_for_no_tracker(tmp_path: Path) -> None:
    with TrackedTrials(tmp_path / "small", OFFLINE) as tracked:
        processes = tracker_processes("wandb") + tracker_processes("tensorboard")
        assert len(processes) == 2
    assert not any(process.is_running() for process in processes)
    assert tracked.notes == []
    assert not (tmp_path / "small" / "tensorboard").exists()


def test_links_in_a_results_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "small" / "tensorboard").mkdir(parents=True)
    for link in (Path("wandb"), Path("tensorboard") / TRIALS[0].run_name):
        (tmp_path / "small" / link).symlink_to(tmp_path / "outside")
    notes = track_launch(tmp_path / "small", OFFLINE)
    assert list((tmp_path / "outside").iterdir()) == []
    assert len([note for note in notes if "is a link, which is not followed" in note]) == 2
