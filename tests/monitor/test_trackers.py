"""Experiment trackers by their real clients: what arrives there, and that none of them is ever waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import RunSweep
from mlflow import MlflowClient
from oracle import read_stable_table, wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from wandb_lab import API_KEY, load_offline_runs, serve_wandb

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.monitor.trackers import dispatcher, options
from raylm.monitor.trackers.dispatcher import TrackerPool
from raylm.monitor.trackers.options import TrackerOptions, resolve
from raylm.results.progress import EvalMetrics, Progress, StepMetrics
from raylm.results.rows import INTERRUPTED, PENDING, Row, SavedCheckpoint
from raylm.results.storage import Folder

OFFLINE = TrackerOptions("offline", None, None)
NO_WANDB = TrackerOptions("disabled", None, None)
TRIALS = [TrialConfig(context_length=64, seed=seed) for seed in (0, 1)]
EPOCHS = {10: (5.9, 5.5, 9.5), 20: (5.0, 5.2, 9.0), 30: (4.1, 5.4, 9.3)}
"""Train loss, val loss and adj val loss by their steps: the second epoch is the best."""
LOSSES = ("train_loss", "val_loss", "adj_val_loss")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of one's own, and no setting of the user's."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


class Told:
    """Tells trackers of two trials and notes how long each word took."""

    def __init__(self, folder: Path, trackers: TrackerOptions, rows: list[Row] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = rows or [Row(trial, PENDING, "", None, None) for trial in TRIALS]
        self.said: list[str] = []
        self.slowest = 0.0
        self.closing = 0.0
        self.tracking = TrackerPool(trackers, Folder(folder), "abcd1234", rows, self.said.append)

    def tell(self, word: Callable[..., None], *arguments: Any) -> None:
        before = time.monotonic()
        word(*arguments)
        self.slowest = max(self.slowest, time.monotonic() - before)

    def train(self, first: int, last: int) -> None:
        for trial in TRIALS:
            self.tell(self.tracking.on_trial_start, trial)
        for step in range(first, last + 1):
            for trial in TRIALS:
                now = StepMetrics(step, 30, 6 - step / 10, step * 512, 1000.0)
                self.tell(self.tracking.on_step, trial, now)
                self.tell(self.tracking.on_step, trial, now)  # the display is told the same again
                if step in EPOCHS:
                    losses = dict(zip(LOSSES, EPOCHS[step], strict=True))
                    epoch = {"epoch": step // 10, "step": step, "tokens_seen": step * 512, "tokens_per_second": 1000.0}
                    self.tell(self.tracking.on_evaluate, trial, {**epoch, **losses})

    def end(self, status: str) -> None:
        for trial in TRIALS:
            self.tell(self.tracking.on_trial_end, trial, status, "")

    def __enter__(self) -> Told:
        self.tracking.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        before = time.monotonic()
        self.tracking.__exit__()
        self.closing = time.monotonic() - before


def tracked(folder: Path, trackers: TrackerOptions, *, rows: list[Row] | None = None, last: int = 30) -> Told:
    """Both trials from their first step, or from where their rows stand, to the last."""
    done = max((one.step for row in rows or [] for one in row.evaluations), default=0)
    with Told(folder, trackers, rows) as told:
        told.train(done + 1, last)
        told.end("done" if last == 30 else "paused")
    return told


def rows_after(step: int) -> list[Row]:
    """How the trials stand in storage after so many steps."""
    evaluations = [EvalMetrics(at // 10, at, at * 512, *losses) for at, losses in EPOCHS.items() if at <= step]
    saved = SavedCheckpoint("", Progress(30, 8, step=step, evaluations=evaluations))
    return [Row(trial, INTERRUPTED, "", saved, saved) for trial in TRIALS]


def processes(name: str) -> list[psutil.Process]:
    """The processes of a tracker that this one has started."""
    command = ["-m", "raylm.monitor.trackers.worker", name]
    return [child for child in psutil.Process().children() if child.cmdline()[1:] == command]  # fmt: skip


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


# ---- what arrives -------------------------------------------------------------------------------------------------


def test_wandb_offline_has_a_run_for_each_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    told = tracked(tmp_path / "small", OFFLINE)
    runs = load_offline_runs(tmp_path / "small")
    assert len(runs) == 2
    by_name = {run.name: run for run in runs}
    for trial in TRIALS:
        run = by_name[trial.run_name]
        assert (run.id, run.group, run.project) == (f"{trial.id}-abcd1234", "small", "raylm")
        config = {**trial.as_dict(), "trial_id": trial.id}
        assert {name: run.config[name] for name in config} == config
        losses = [(row["step"], row["tokens"], row["loss"]) for row in run.history if "loss" in row]
        assert losses == [(step, step * 512, pytest.approx(6 - step / 10)) for step in range(1, 31)]
        evaluated = [row for row in run.history if "val_loss" in row]
        assert {row["step"]: tuple(row[name] for name in LOSSES) for row in evaluated} == EPOCHS
        assert {run.step_metrics[name] for name in ("loss", *LOSSES)} == {"step"}
        assert {run.step_metrics[f"by_tokens/{name}"] for name in ("loss", *LOSSES)} == {"tokens"}
        assert tuple(run.summary[name] for name in (*LOSSES, "best_epoch", "status")) == (*EPOCHS[20], 2, "done")
    assert (
        f"wandb: wandb sync --include-online {tmp_path}/small/wandb/*run-* brings the rest to the server" in told.said
    )
    assert files_with(API_KEY, tmp_path) == []


def test_a_resumed_trial_goes_on_in_its_run_offline_and_by_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked(tmp_path / "small", OFFLINE, last=20)
    tracked(tmp_path / "small", OFFLINE, rows=rows_after(20))
    runs = load_offline_runs(tmp_path / "small")
    assert sorted(run.id for run in runs) == sorted(2 * [f"{trial.id}-abcd1234" for trial in TRIALS])
    assert {run.summary["best_epoch"] for run in runs} == {2}  # also where the third is all that was seen
    with serve_wandb("keep") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        wandb, parts = Path(sys.executable).with_name("wandb"), (tmp_path / "small").glob("wandb/*run-*")
        sync = [str(wandb), "sync", "--include-online", *map(str, parts)]
        subprocess.run(sync, check=True, capture_output=True, timeout=60, cwd=tmp_path)  # its logs go there
        assert set(server.history) == {f"{trial.id}-abcd1234" for trial in TRIALS}
        for history in server.history.values():
            assert [row["step"] for row in history.values() if "loss" in row] == list(range(1, 31))


def test_a_resumed_trial_goes_on_in_its_run_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    with serve_wandb("keep") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        first = tracked(tmp_path / "small", resolve(), last=20)
        tracked(tmp_path / "small", resolve(), rows=rows_after(20))
        assert f"wandb: {server.url}/me/raylm/groups/small" in first.said
        assert server.groups == {f"{trial.id}-abcd1234": "small" for trial in TRIALS}
        for run, history in server.history.items():
            assert [row["step"] for row in history.values() if "loss" in row] == list(range(1, 31))
            summary = json.loads(server.runs[run]["summaryMetrics"])
            assert (summary["val_loss"], summary["best_epoch"]) == (5.2, 2)
    assert files_with(API_KEY, tmp_path) == []


def test_tensorboard_reads_losses_against_steps_and_the_fields_with_the_best_losses(tmp_path: Path) -> None:
    tracked(tmp_path / "small", NO_WANDB, last=25)  # five steps beyond what was saved
    tracked(tmp_path / "small", NO_WANDB, rows=rows_after(20))
    for trial in TRIALS:
        events = EventAccumulator(str(tmp_path / "small" / "tensorboard" / trial.run_name))
        events.Reload()
        assert [one.step for one in events.Scalars("loss")] == list(range(1, 31))
        for place, name in enumerate(LOSSES):
            read = {one.step: one.value for one in events.Scalars(name)}
            assert read == pytest.approx({step: losses[place] for step, losses in EPOCHS.items()})
            assert events.Scalars(f"best/{name}")[-1].value == pytest.approx(EPOCHS[20][place])
        assert {one.value for one in events.Scalars("tokens_per_second")} == {1000.0}
        contents = events.PluginTagToContent("hparams")
        experiment = HParamsPluginData.FromString(contents["_hparams_/experiment"]).experiment
        begun = HParamsPluginData.FromString(contents["_hparams_/session_start_info"]).session_start_info
        assert {one.name.tag for one in experiment.metric_infos} == {f"best/{name}" for name in LOSSES}
        assert set(begun.hparams) == {one.name for one in experiment.hparam_infos} == set(trial.as_dict())
        assert begun.hparams["seed"].number_value == trial.seed
        assert begun.hparams["model"].string_value == trial.model
        assert "_hparams_/session_end_info" in contents


def test_mlflow_has_a_run_for_each_trial_and_goes_on_in_it(tmp_path: Path) -> None:
    trackers = TrackerOptions("disabled", str(tmp_path / "mlflow"), None)
    tracked(tmp_path / "small", trackers, last=20)
    tracked(tmp_path / "small", trackers, rows=rows_after(20))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("small")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {trial.run_name for trial in TRIALS}
    for trial in TRIALS:
        run = runs[trial.run_name]
        assert run.data.params == {name: str(value) for name, value in trial.as_dict().items()}
        assert (run.info.status, run.data.tags["raylm.status"]) == ("FINISHED", "done")
        assert (run.data.metrics["best_val_loss"], run.data.metrics["best_epoch"]) == (5.2, 2)
        steps = [one.step for one in client.get_metric_history(run.info.run_id, "loss")]
        assert sorted(steps) == list(range(1, 31))


def test_trackio_has_a_run_for_each_trial_and_goes_on_in_it(tmp_path: Path) -> None:
    trackers = TrackerOptions("disabled", None, "mine")
    tracked(tmp_path / "small", trackers, last=20)
    tracked(tmp_path / "small", trackers, rows=rows_after(20))
    code = """
import json
from trackio.sqlite_storage import SQLiteStorage as kept
print(json.dumps({run: kept.get_logs("mine", run) for run in kept.get_runs("mine")}))
"""
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    runs = json.loads(read.stdout.splitlines()[-1])
    assert set(runs) == {f"{trial.run_name}-abcd1234" for trial in TRIALS}
    for logs in runs.values():
        assert [row["step"] for row in logs if "loss" in row] == list(range(1, 31))
        assert [row["best/val_loss"] for row in logs if "best/val_loss" in row] == [5.5, 5.2, 5.2, 5.2, 5.2]


def test_a_step_that_arrives_after_its_trial_has_ended_changes_no_run(tmp_path: Path) -> None:
    """The driver reads steps in a thread: the last one of a trial may arrive when the trial has ended."""
    with Told(tmp_path / "small", OFFLINE) as told:
        told.train(1, 29)
        told.end("done")
        for trial in TRIALS:
            told.tell(told.tracking.on_step, trial, StepMetrics(30, 30, 3.0, 30 * 512, 1000.0))
    runs = load_offline_runs(tmp_path / "small")
    assert [(run.summary["val_loss"], run.summary["status"]) for run in runs] == 2 * [(EPOCHS[20][1], "done")]
    for trial in TRIALS:
        assert len(list((tmp_path / "small" / "tensorboard" / trial.run_name).iterdir())) == 1


def test_a_trial_that_ends_without_having_started_is_not_tracked(tmp_path: Path) -> None:
    """While a sweep pauses, a trial may get its resources too late to start: its end alone is reported."""
    with Told(tmp_path / "small", OFFLINE) as told:
        told.end("paused")
    assert told.said == []
    assert load_offline_runs(tmp_path / "small") == []


# ---- what goes wrong there ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("does", ["401", "500", "stall", "nothing there"])
def test_a_server_that_refuses_stalls_or_is_away_holds_nothing_up(
    does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    with serve_wandb(does if does != "nothing there" else "500") as server:
        address = server.url if does != "nothing there" else "http://127.0.0.1:9"
        monkeypatch.setenv("WANDB_BASE_URL", address)
        told = tracked(tmp_path / "small", TrackerOptions("online", address, None))
    assert told.slowest < 1
    assert told.closing < dispatcher.SILENT_WAIT_SECONDS + dispatcher.GRACE_SECONDS + 2
    assert len([line for line in told.said if "runs are written offline from here on" in line]) == 1
    assert len([line for line in told.said if line.startswith("mlflow: ")]) in (1, 2)  # why, and how much was lost
    runs = load_offline_runs(tmp_path / "small")
    assert sorted(run.id for run in runs) == sorted(f"{trial.id}-abcd1234" for trial in TRIALS)
    assert {run.summary["best_epoch"] for run in runs} == {2}
    assert [len([row for row in run.history if "loss" in row]) for run in runs] == [30, 30]
    assert files_with(API_KEY, tmp_path) == []


def test_a_tracker_that_is_killed_costs_one_message(tmp_path: Path) -> None:
    with Told(tmp_path / "small", NO_WANDB) as told:
        told.train(1, 10)
        (process,) = processes("tensorboard")
        process.kill()
        told.train(11, 30)
        while not told.said:
            time.sleep(0.01)
        told.end("done")
    (said,) = told.said
    assert said.startswith("tensorboard: its process ended (-9)")
    assert told.slowest < 1
    assert told.closing < 1


def test_a_tracker_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatcher, "GRACE_SECONDS", 1.0)
    monkeypatch.setattr(dispatcher, "MOST_WAITING", 50)
    with Told(tmp_path / "small", NO_WANDB) as told:
        (process,) = processes("tensorboard")
        process.send_signal(signal.SIGSTOP)
        for first in range(1, 10_000, 30):  # more than its pipe and its queue hold
            told.train(first, first + 29)
        told.end("done")
    assert told.slowest < 1
    assert told.closing < 4
    assert not process.is_running()
    assert "tensorboard: not finished after 1 s; what was on its way may be lost" in told.said
    assert any("events were not taken in time" in line for line in told.said)


def test_the_trackers_of_a_command_that_is_killed_finish_by_themselves(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_trackers import *
with Told(Path({str(tmp_path / "small")!r}), NO_WANDB) as told:
    told.train(1, 30)
    time.sleep(2)
    print(*(one.pid for one in processes("tensorboard")), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (left,) = map(int, done.stdout.split())
    if psutil.pid_exists(left):
        psutil.Process(left).wait(timeout=20)
    events = EventAccumulator(str(tmp_path / "small" / "tensorboard" / TRIALS[1].run_name))
    events.Reload()
    assert [one.step for one in events.Scalars("loss")] == list(range(1, 31))


def test_a_service_that_is_killed_costs_no_trial_and_is_told_of(tmp_path: Path) -> None:
    with Told(tmp_path / "small", OFFLINE) as told:
        told.train(1, 15)
        wait_for(lambda: len(list((tmp_path / "small").glob("wandb/offline-run-*/*.wandb"))) == 2)
        for process in psutil.Process().children(recursive=True):
            if process.name() == "wandb-core":
                process.kill()
        told.train(16, 30)
        told.end("done")
    assert told.slowest < 1
    assert any(one.startswith("wandb: ") and one.endswith("the last of it may be lost") for one in told.said)


def test_a_launch_of_which_nothing_was_told_waits_for_no_tracker(tmp_path: Path) -> None:
    with Told(tmp_path / "small", OFFLINE) as told:
        started = processes("wandb") + processes("tensorboard")
        assert len(started) == 2
    assert not any(one.is_running() for one in started)
    assert told.said == []
    assert not (tmp_path / "small" / "tensorboard").exists()


def test_links_in_a_results_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "small" / "tensorboard").mkdir(parents=True)
    for link in (Path("wandb"), Path("tensorboard") / TRIALS[0].run_name):
        (tmp_path / "small" / link).symlink_to(tmp_path / "outside")
    told = tracked(tmp_path / "small", OFFLINE)
    assert list((tmp_path / "outside").iterdir()) == []
    assert len([line for line in told.said if "is a link, which is not followed" in line]) == 2


# ---- which --------------------------------------------------------------------------------------------------------


def test_wandb_is_on_where_it_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve().wandb == "disabled"
    (tmp_path / "home").mkdir()
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {API_KEY}\n")
    assert resolve().wandb == "online"
    assert resolve("offline").wandb == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert resolve().wandb == "disabled"
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    assert resolve().wandb == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert resolve().wandb == "offline"
    assert resolve("disabled").wandb == "disabled"


def test_the_server_of_a_login_elsewhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    (tmp_path / "netrc").write_text(f"machine wandb.example.org\n  login user\n  password {API_KEY}\n")
    assert options.has_wandb_login()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"wandb": "ofline"}, "--wandb: got 'ofline'; expected one of online, offline, disabled; did you mean"),
        ({"wandb": "online"}, "no key for api.wandb.ai is known; run `wandb login`"),
        ({"mlflow": "https://me:secret@mlflow.example.org"}, "set MLFLOW_TRACKING_USERNAME"),
    ],
)
def test_what_cannot_be_had_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve(**arguments)
    assert message in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts() -> None:
    code = """
import sys
sys.modules["mlflow"] = None  # as if it were not there
from raylm.cli import app
app(["run", "sweeps/quickstart.py", "--mlflow", "x"])
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 2, done.stderr
    assert "pip install 'raylm[mlflow]'" in done.stderr


# ---- a whole sweep ------------------------------------------------------------------------------------------------

SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="small", space={{
    "dataset": {dataset!r}, "model": "gpt2-nano", "context_length": 16, "batch_size": tune.grid_search([2, 4]),
    "epochs": 2,
}}, resources=Resources(cpus=1))
"""


@pytest.mark.slow
def test_a_sweep_is_tracked_everywhere(tmp_path: Path, small_text: Path, run_sweep: RunSweep) -> None:
    file = tmp_path / "small.py"
    file.write_text(SWEEP.format(dataset=str(small_text)))
    everywhere = ("--wandb", "offline", "--mlflow", str(tmp_path / "mlflow"), "--trackio", "mine")
    done = run_sweep(file, *everywhere)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "small"
    rows = read_stable_table(folder)
    runs = {run.name: run for run in load_offline_runs(folder)}
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "small"]
    in_mlflow = {run.info.run_name: run.data.metrics for run in client.search_runs([experiment.experiment_id])}
    assert set(rows) == set(runs) == set(in_mlflow) == {path.name for path in (folder / "tensorboard").iterdir()}
    for name, row in rows.items():
        val_loss = float(row["val_loss"])
        events = EventAccumulator(str(folder / "tensorboard" / name))
        events.Reload()
        assert runs[name].summary["val_loss"] == in_mlflow[name]["best_val_loss"] == val_loss
        assert events.Scalars("best/val_loss")[-1].value == pytest.approx(val_loss)
        assert runs[name].summary["best_epoch"] == int(row["best_epoch"])
        assert len([one for one in runs[name].history if "val_loss" in one]) == 2
    assert list((tmp_path / "trackio").glob("mine*.db"))
    assert len(list(folder.glob("launch-001/*/params.json"))) == 2  # Tune's own, all but its event files
    assert not list(folder.glob("launch-*/**/events.out.tfevents*"))
    record = json.loads((folder / "sweep.json").read_text())
    assert {run.id.rpartition("-")[2] for run in runs.values()} == {record["launches"][0]["sweep_id"]}
