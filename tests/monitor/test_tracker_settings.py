"""Settings of trackers that stand in the environment or in files: whoever has turned a tracker off is obeyed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
from tracked_trials import API_KEY, SWEEP_ID, TRIALS, track_launch
from tracked_trials import tracker_home as tracker_home
from typer.testing import CliRunner
from wandb_lab import load_offline_runs, serve_wandb

from raylm.cli.app import app
from raylm.errors import UserError
from raylm.monitor.trackers import dispatcher
from raylm.monitor.trackers.environment import tracker_environment
from raylm.monitor.trackers.options import TrackerOptions, resolve

RUN_IDS = {f"{trial.id}-{SWEEP_ID}" for trial in TRIALS}
AGENT_VARIABLES = {
    "WANDB_RUN_ID": "agents-run",
    "WANDB_SWEEP_ID": "agents-sweep",
    "WANDB_SWEEP_PARAM_PATH": "/nowhere/config.yaml",
    "WANDB_NAME": "agents-name",
    "WANDB_RUN_GROUP": "agents-group",
    "WANDB_RESUME": "must",
    "WANDB_FORK_FROM": "other-run?_step=3",
    "WANDB_CONFIG_PATHS": "/nowhere/defaults.yaml",
    "WANDB_SERVICE": "3-1-tcp-localhost-9",
    "WANDB_DIR": "/nowhere",
    "PYTHONWARNINGS": "error",
}
"""Variables as in a process of `wandb agent`, or left over from another run."""


@pytest.fixture(autouse=True)
def login(tracker_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Log in to W&B, and work in an empty folder, which is returned."""
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setattr(dispatcher, "QUIET_WAIT_SECONDS", 60.0)  # no note on waiting on a slow machine
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def write_settings(folder: Path, mode: str) -> None:
    folder.mkdir(parents=True)
    (folder / "settings").write_text(f"[default]\nmode = {mode}\n")


@pytest.mark.parametrize(
    ("variables", "mode", "setting"),
    [
        ({"WANDB_MODE": "offline"}, "offline", "WANDB_MODE=offline"),
        ({"WANDB_MODE": "dryrun"}, "offline", "WANDB_MODE=dryrun"),
        ({"WANDB_MODE": "disabled"}, "disabled", "WANDB_MODE=disabled"),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "disabled", "WANDB_DISABLED=true"),
    ],
)
def test_variable_that_turns_wandb_off_is_obeyed(
    variables: dict[str, str], mode: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert resolve() == TrackerOptions(mode, None, None, (f"wandb: {mode} because of {setting}",))
    with pytest.raises(UserError, match=f"W&B is {mode} because of {setting}; remove the flag or that setting"):
        resolve("online")
    result = CliRunner().invoke(
        app, ["run", str(Path(__file__).parents[2] / "sweeps/quickstart.py"), "--wandb", "online"]
    )
    assert result.exit_code == 2 and setting in result.stderr


@pytest.mark.parametrize("place", ["wandb", ".wandb", "../home/.config/wandb", "../data/wandb"])
def test_settings_file_that_turns_wandb_off_is_obeyed(place: str, login: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", str(login.parent / "data"))
    assert resolve().wandb == "online"
    write_settings(login / place, "disabled")
    (note,) = resolve().notes
    assert note.startswith("wandb: disabled because of `mode = disabled` in ")
    assert Path(note.rpartition(" in ")[2]).samefile(login / place / "settings")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert resolve() == TrackerOptions("online", None, None), "a variable takes precedence, as for W&B"


def test_mode_of_the_working_folder_takes_precedence_over_the_users(login: Path) -> None:
    write_settings(login.parent / "home/.config/wandb", "disabled")
    write_settings(login / "wandb", "online")  # as by `wandb enabled`
    assert resolve() == TrackerOptions("online", None, None)


def test_commands_of_wandb_that_turn_it_off_are_obeyed(login: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = Path(sys.executable).with_name("wandb")
    with serve_wandb("keep") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        for command in ("disabled", "offline"):
            subprocess.run([wandb, command], check=True, capture_output=True, timeout=60)
            resolved = resolve()
            assert resolved.wandb == command
            notes = track_launch(login / command, resolved)
            assert notes[0] == f"wandb: {command} because of `mode = {command}` in wandb/settings"
        assert server.requests == []
    assert load_offline_runs(login / "disabled") == []
    assert {run.id for run in load_offline_runs(login / "offline")} == RUN_IDS
    subprocess.run([wandb, "online"], check=True, capture_output=True, timeout=60)
    assert resolve().wandb == "online"


def test_trials_have_runs_of_their_own_in_the_process_of_an_agent(login: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AGENT_VARIABLES.items():
        monkeypatch.setenv(name, value)
    with serve_wandb("keep") as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        write_settings(login / "wandb", "disabled\nsweep_id = other-sweep\nrun_id = other-run")
        track_launch(login / "small", resolve("offline"))
        assert server.requests == []
        runs = {run.id: (run.name, run.group, run.project) for run in load_offline_runs(login / "small")}
        assert runs == {f"{trial.id}-{SWEEP_ID}": (trial.run_name, "small", "raylm") for trial in TRIALS}
        monkeypatch.setenv("WANDB_PROJECT", "mine")
        monkeypatch.setenv("WANDB_MODE", "online")
        notes = track_launch(login / "small", resolve())
        assert notes[0] == f"wandb: {server.url}/me/mine/groups/small"
        assert server.groups == dict.fromkeys(RUN_IDS, "small")


def test_trackio_sends_nothing_to_a_space_while_the_hub_is_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "me/space")
    assert resolve("disabled", trackio="mine").notes == ()
    assert tracker_environment()["TRACKIO_SPACE_ID"] == "me/space"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (note,) = resolve("disabled", trackio="mine").notes
    assert note.startswith("trackio: offline because of HF_HUB_OFFLINE=1")
    assert "TRACKIO_SPACE_ID" not in tracker_environment()


def test_tracker_starts_beside_files_that_are_named_like_modules(login: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("queue", "secrets", "wandb", "tensorboardX"):
        (login / f"{name}.py").write_text("raise SystemExit(f'{__name__} of the working folder')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(login), os.environ.get("PYTHONPATH", "")]))
    notes = track_launch(login / "small", TrackerOptions("offline", None, None))
    assert [note for note in notes if "sync" not in note] == []
    assert {run.id for run in load_offline_runs(login / "small")} == RUN_IDS
    assert (login / "small" / "tensorboard" / TRIALS[0].run_name).is_dir()


def test_folder_of_a_packages_data_is_not_the_package(login: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (login / "mlflow").mkdir()  # as of `--mlflow mlflow`
    monkeypatch.setattr(sys, "path", [str(login)])
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(UserError, match="mlflow is not installed"):
        resolve("disabled", mlflow="mlflow")


def test_trackers_report_nothing_on_themselves(login: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)
    env = tracker_environment()
    assert env["WANDB_ERROR_REPORTING"] == "false" and env["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert env["HF_HUB_DISABLE_TELEMETRY"] == "1" and env["GRADIO_ANALYTICS_ENABLED"] == "False"
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
    assert tracker_environment()["WANDB_ERROR_REPORTING"] == "true"


def test_job_on_a_cluster_obeys_the_settings_of_the_machine_that_submits_it(
    login: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted: list[list[str]] = []

    def submit_job(address: str, file: Path, arguments: list[str], write: object) -> int:
        submitted.append(arguments)
        return 0

    jobs = cast("ModuleType", SimpleNamespace(submit_job=submit_job))
    monkeypatch.setitem(sys.modules, "raylm.tuning.connection.jobs", jobs)
    command = ["run", str(Path(__file__).parents[2] / "sweeps" / "quickstart.py"), "--address", "http://head:8265"]
    write_settings(login / "wandb", "disabled")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0 and "wandb: disabled because of `mode = disabled`" in result.output
    assert CliRunner().invoke(app, [*command, "--wandb", "offline"]).exit_code == 0
    assert submitted == [["--wandb=disabled"], ["--wandb=offline"]]
    assert CliRunner().invoke(app, [*command, "--wandb", "online"]).exit_code == 2
