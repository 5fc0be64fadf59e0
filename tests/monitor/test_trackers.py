"""Experiment trackers by their real clients: runs, resumed runs, and a whole sweep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RunHere
from mlflow import MlflowClient
from oracle import read_stable_table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tracked_trials import (
    API_KEY,
    EPOCHS,
    NO_WANDB,
    OFFLINE,
    SWEEP_ID,
    TRIALS,
    TrackedTrials,
    files_with,
    rows_after,
    track_launch,
)
from tracked_trials import tracker_home as tracker_home
from wandb_lab import load_offline_runs, serve_wandb

from raylm import Resources, Sweep
from raylm.monitor.trackers.options import TrackerOptions, resolve
from raylm.results.progress import LOSS_NAMES, StepMetrics

PROGRAMS = Path(__file__).parents[1] / "programs"
RUN_IDS = {f"{trial.id}-{SWEEP_ID}" for trial in TRIALS}


def test_wandb_offline_has_a_run_per_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    notes = track_launch(tmp_path / "small", OFFLINE)
    runs = load_offline_runs(tmp_path / "small")
    assert len(runs) == 2
    by_name = {run.name: run for run in runs}
    for trial in TRIALS:
        run = by_name[trial.run_name]
        assert (run.id, run.group, run.project) == (f"{trial.id}-{SWEEP_ID}", "small", "raylm")
        config = {**trial.as_record(), "trial_id": trial.id}
        assert {name: run.config[name] for name in config} == config
        losses = [(row["step"], row["tokens"], row["loss"]) for row in run.history if "loss" in row]
        assert losses == [(step, step * 512, pytest.approx(6 - step / 10)) for step in range(1, 31)]
        evaluations = [row for row in run.history if "val_loss" in row]
        assert {row["step"]: tuple(row[name] for name in LOSS_NAMES) for row in evaluations} == EPOCHS
        assert {run.step_metrics[name] for name in ("loss", *LOSS_NAMES)} == {"step"}
        assert {run.step_metrics[f"by_tokens/{name}"] for name in ("loss", *LOSS_NAMES)} == {"tokens"}
        assert tuple(run.summary[name] for name in (*LOSS_NAMES, "best_epoch", "status")) == (*EPOCHS[20], 2, "done")
    assert f"wandb: upload the rest with wandb sync --include-online {tmp_path}/small/wandb/*run-*" in notes
    assert files_with(API_KEY, tmp_path) == []


def test_resumed_trial_continues_its_offline_run_after_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    track_launch(tmp_path / "small", OFFLINE, last_step=20)
    track_launch(tmp_path / "small", OFFLINE, rows=rows_after(20))
    runs = load_offline_runs(tmp_path / "small")
    assert sorted(run.id for run in runs) == sorted(2 * list(RUN_IDS))
    assert {run.summary["best_epoch"] for run in runs} == {2}  # the second launch evaluated the third epoch only
    with serve_wandb("keep") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        wandb, folders = Path(sys.executable).with_name("wandb"), (tmp_path / "small").glob("wandb/*run-*")
        command = [str(wandb), "sync", "--include-online", *map(str, folders)]
        subprocess.run(command, check=True, capture_output=True, timeout=60, cwd=tmp_path)  # it writes logs there
        assert set(server.history) == RUN_IDS
        for history in server.history.values():
            assert [row["step"] for row in history.values() if "loss" in row] == list(range(1, 31))


def test_resumed_trial_continues_its_online_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    with serve_wandb("keep") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        notes = track_launch(tmp_path / "small", resolve(), last_step=20)
        track_launch(tmp_path / "small", resolve(), rows=rows_after(20))
        assert f"wandb: {server.url}/me/raylm/groups/small" in notes
        assert server.groups == dict.fromkeys(RUN_IDS, "small")
        for run_id, history in server.history.items():
            assert [row["step"] for row in history.values() if "loss" in row] == list(range(1, 31))
            summary = json.loads(server.runs[run_id]["summaryMetrics"])
            assert (summary["val_loss"], summary["best_epoch"]) == (5.2, 2)
    assert files_with(API_KEY, tmp_path) == []


def test_trial_that_ends_before_its_next_evaluation_has_the_best_of_its_row(tmp_path: Path) -> None:
    track_launch(tmp_path / "small", OFFLINE, rows=rows_after(20), last_step=25)
    runs = load_offline_runs(tmp_path / "small")
    assert [tuple(run.summary[name] for name in (*LOSS_NAMES, "best_epoch")) for run in runs] == 2 * [(*EPOCHS[20], 2)]


def test_tensorboard_has_losses_by_step_and_fields_with_the_best_losses(tmp_path: Path) -> None:
    track_launch(tmp_path / "small", NO_WANDB, last_step=25)  # five steps after the checkpoint
    track_launch(tmp_path / "small", NO_WANDB, rows=rows_after(20))
    for trial in TRIALS:
        events = EventAccumulator(str(tmp_path / "small" / "tensorboard" / trial.run_name))
        events.Reload()
        assert [event.step for event in events.Scalars("loss")] == list(range(1, 31))
        for index, name in enumerate(LOSS_NAMES):
            values = {event.step: event.value for event in events.Scalars(name)}
            assert values == pytest.approx({step: losses[index] for step, losses in EPOCHS.items()})
            assert events.Scalars(f"best/{name}")[-1].value == pytest.approx(EPOCHS[20][index])
        assert {event.value for event in events.Scalars("tokens_per_second")} == {1000.0}
        contents = events.PluginTagToContent("hparams")
        experiment = HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
        start = HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info
        assert {info.name.tag for info in experiment.metric_infos} == {f"best/{name}" for name in LOSS_NAMES}
        assert set(start.hparams) == {info.name for info in experiment.hparam_infos} == set(trial.as_dict())
        assert start.hparams["seed"].number_value == trial.seed
        assert start.hparams["model"].string_value == trial.model
        assert "_hparams_/session_end_info" in contents


def test_mlflow_has_a_run_per_trial_and_resumes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123456789abcdef0123456789abcdef")  # as in the process of another run
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    options = TrackerOptions("disabled", str(tmp_path / "mlflow"), None)
    track_launch(tmp_path / "small", options, last_step=20)
    track_launch(tmp_path / "small", options, rows=rows_after(20))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {trial.run_name for trial in TRIALS}
    for trial in TRIALS:
        run = runs[trial.run_name]
        assert run.data.params == {name: str(value) for name, value in trial.as_dict().items()}
        assert (run.info.status, run.data.tags["raylm.status"]) == ("FINISHED", "done")
        assert (run.data.metrics["best_val_loss"], run.data.metrics["best_epoch"]) == (5.2, 2)
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
        assert sorted(steps) == list(range(1, 31))


def test_trackio_has_a_run_per_trial_and_resumes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")  # not used while the hub is offline
    options = TrackerOptions("disabled", None, "mine")
    track_launch(tmp_path / "small", options, last_step=20)
    track_launch(tmp_path / "small", options, rows=rows_after(20))
    command = [sys.executable, str(PROGRAMS / "read_trackio.py"), "mine"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    runs = json.loads(output.splitlines()[-1])
    assert set(runs) == {f"{trial.run_name}-{SWEEP_ID}" for trial in TRIALS}
    for logs in runs.values():
        assert [row["step"] for row in logs if "loss" in row] == list(range(1, 31))
        assert [row["best/val_loss"] for row in logs if "best/val_loss" in row] == [5.5, 5.2, 5.2, 5.2, 5.2]


def test_step_after_the_end_of_its_trial_is_dropped(tmp_path: Path) -> None:
    """Steps are polled in a thread: the last step of a trial may arrive after its end."""
    with TrackedTrials(tmp_path / "small", OFFLINE) as tracked:
        tracked.train(1, 29)
        tracked.end("done")
        for trial in TRIALS:
            tracked.pool.on_step(trial, StepMetrics(30, 30, 3.0, 30 * 512, 1000.0))
    runs = load_offline_runs(tmp_path / "small")
    assert [(run.summary["val_loss"], run.summary["status"]) for run in runs] == 2 * [(EPOCHS[20][1], "done")]
    for trial in TRIALS:
        assert len(list((tmp_path / "small" / "tensorboard" / trial.run_name).iterdir())) == 1


def test_trial_that_ends_without_having_started_is_not_tracked(tmp_path: Path) -> None:
    """While a sweep pauses, a trial may get its resources too late to start: only its end is reported."""
    with TrackedTrials(tmp_path / "small", OFFLINE) as tracked:
        tracked.end("paused")
    assert tracked.notes == []
    assert load_offline_runs(tmp_path / "small") == []


def test_sweep_is_tracked_by_all_trackers(tmp_path: Path, small_text: Path, run_here: RunHere) -> None:
    space = {
        "dataset": str(small_text),
        "model": "gpt2-nano",
        "context_length": 16,
        "batch_size": {"grid_search": [2, 4]},
        "epochs": 2,
    }
    sweep = Sweep(name="small", space=space, resources=Resources(cpus=1))
    done = run_here(sweep, trackers=TrackerOptions("offline", str(tmp_path / "mlflow"), "mine"))
    assert done.exit_code == 0, done.output
    folder = done.folder
    rows = read_stable_table(folder)
    runs = {run.name: run for run in load_offline_runs(folder)}
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    mlflow_metrics = {run.info.run_name: run.data.metrics for run in client.search_runs([experiment.experiment_id])}
    assert set(rows) == set(runs) == set(mlflow_metrics) == {path.name for path in (folder / "tensorboard").iterdir()}
    for name, row in rows.items():
        val_loss = float(row["val_loss"])
        events = EventAccumulator(str(folder / "tensorboard" / name))
        events.Reload()
        assert runs[name].summary["val_loss"] == mlflow_metrics[name]["best_val_loss"] == val_loss
        assert runs[name].summary["train_loss"] == float(row["train_loss"])
        assert events.Scalars("best/val_loss")[-1].value == pytest.approx(val_loss)
        assert runs[name].summary["best_epoch"] == int(row["best_epoch"])
        assert len([logged for logged in runs[name].history if "val_loss" in logged]) == 2
    assert list((tmp_path / "trackio").glob("mine*.db"))
    assert len(list(folder.glob("launch-001/*/params.json"))) == 2  # Tune's own files, all but its event files
    assert not list(folder.glob("launch-*/**/events.out.tfevents*"))
    record = json.loads((folder / "sweep.json").read_text())
    assert {run.id.rpartition("-")[2] for run in runs.values()} == {record["launches"][0]["sweep_id"]}
