"""Heartbeat of a command: what others read while it runs, after it has died, and from another host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from oracle import wait_for
from typer.testing import CliRunner

from raylm.cli.app import app
from raylm.config.trial import TrialConfig
from raylm.monitor.heartbeat import read_heartbeat
from raylm.monitor.state import SweepMonitor
from raylm.results import heartbeat as heartbeats
from raylm.results import sweep_record
from raylm.results.heartbeat import HEARTBEAT_FILE, Heartbeat
from raylm.results.progress import StepMetrics
from raylm.results.rows import PENDING, QUEUED, RUNNING, Row, SweepRows
from raylm.results.storage import Folder
from raylm.results.sweep_record import SweepRecord

PROGRAM = Path(__file__).parents[1] / "programs" / "heartbeat_and_die.py"
TRIALS = [TrialConfig(seed=seed, context_length=64) for seed in range(2)]


def build_monitor() -> SweepMonitor:
    results = SweepRows(Folder(Path("/nowhere")), [Row(trial, PENDING, "", None, None) for trial in TRIALS])
    return SweepMonitor("s", results, 2, lambda trial: 1.0)


def test_heartbeat_holds_the_state_while_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def has_running_trial() -> bool:
        last = read_heartbeat(Folder(tmp_path))
        return last is not None and last.state is not None and len(last.state.running) == 1

    monkeypatch.setattr(heartbeats, "HEARTBEAT_SECONDS", 0.05)
    monitor = build_monitor()
    with Heartbeat(Folder(tmp_path)) as heartbeat:
        first = read_heartbeat(Folder(tmp_path))
        assert first is not None and first.is_alive and first.state is None
        heartbeat.report(monitor.snapshot)
        monitor.on_trial_start(TRIALS[0])
        monitor.on_step(TRIALS[0], StepMetrics(1, 10, 5.0, 100, 10.0))
        wait_for(has_running_trial)
        last = read_heartbeat(Folder(tmp_path))
        assert (
            last is not None
            and last.is_alive
            and last.state is not None
            and last.state.counts == {RUNNING: 1, QUEUED: 1}
        )
        assert f"run by process {last.pid} on {last.host} (last heartbeat " in last.description
    assert read_heartbeat(Folder(tmp_path)) is None and list(tmp_path.iterdir()) == []


def test_command_that_died_is_known_to_be_dead(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    sweep_record.write(Folder(folder), SweepRecord("s", TRIALS))
    command = [sys.executable, str(PROGRAM), str(folder)]
    assert subprocess.run(command, check=False, timeout=60).returncode == 9
    last = read_heartbeat(Folder(folder))
    assert last is not None and not last.is_alive

    output = CliRunner().invoke(app, ["status", str(folder)]).output
    assert output.startswith(f"s  2 {PENDING}\n")
    assert f"last run by process {last.pid} on {last.host}, which died" in output
    assert "Run the same command to resume." in output


@pytest.mark.parametrize(("seconds_ago", "is_alive"), [(60, True), (120, False)])
def test_command_on_another_host_is_alive_if_its_heartbeat_is_recent(
    tmp_path: Path, seconds_ago: int, is_alive: bool
) -> None:
    with Heartbeat(Folder(tmp_path)):
        content = json.loads((tmp_path / HEARTBEAT_FILE).read_text())
    content["holder"]["host"] = "another.machine"
    content["time"] -= seconds_ago
    (tmp_path / HEARTBEAT_FILE).write_text(json.dumps(content))
    last = read_heartbeat(Folder(tmp_path))
    assert last is not None and last.is_alive is is_alive and last.host == "another.machine"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"state": {"sweep": 1}, "holder": {}}', '{"state": [], "holder": 1}', 10**5 * "["]
)
def test_invalid_heartbeat_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / HEARTBEAT_FILE).write_text(text)
    assert read_heartbeat(Folder(tmp_path)) is None
