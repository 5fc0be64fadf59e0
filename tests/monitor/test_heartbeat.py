"""What a command tells others of the sweep that it runs, and whether they can believe it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raylm.config.trial import TrialConfig
from raylm.monitor import heartbeat
from raylm.monitor.state import SweepMonitor
from raylm.results import sweep_record
from raylm.results.progress import StepMetrics
from raylm.results.rows import PENDING, QUEUED, RUNNING, Results, Row
from raylm.results.storage import Folder
from raylm.results.sweep_record import SweepRecord

TRIALS = [TrialConfig(seed=seed, context_length=64) for seed in range(2)]
RUNS = [trial.run_name for trial in TRIALS]


def watch() -> SweepMonitor:
    results = Results(Folder(Path("/nowhere")), [Row(trial, PENDING, "", None, None) for trial in TRIALS])
    return SweepMonitor("s", results, 2, lambda trial: 1.0)


def test_a_command_tells_how_its_sweep_stands_for_as_long_as_it_runs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS", 0.05)
    watched = watch()
    with heartbeat.Heartbeat(Folder(tmp_path), watched):
        watched.on_trial_start(TRIALS[0])
        watched.on_step(TRIALS[0], StepMetrics(1, 10, 5.0, 100, 10.0))
        deadline = time.monotonic() + 30
        while (told := heartbeat.read_heartbeat(Folder(tmp_path))) is None or not told.state.running:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert told.is_alive and told.state.counts == {RUNNING: 1, QUEUED: 1}
    assert heartbeat.read_heartbeat(Folder(tmp_path)) is None and list(tmp_path.iterdir()) == []


DYING = """
import os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_heartbeat import Folder, heartbeat, watch
with heartbeat.Pulse(Folder(Path({folder!r})), watch()):
    while not Path({folder!r}, heartbeat.NAME).exists():
        time.sleep(0.01)
    os._exit(9)
"""


def test_a_command_that_has_died_is_known_to_be_gone(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    sweep_record.write(Folder(folder), SweepRecord("s", TRIALS))
    code = DYING.format(tests=str(Path(__file__).parent), folder=str(folder))
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 9
    told = heartbeat.read_heartbeat(Folder(folder))
    assert told is not None and not told.is_alive

    said = subprocess.run(
        [sys.executable, "-c", "from raylm.cli import app; app()", "status", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.startswith("s  2 missing\n") and f"process {told.pid} on {told.host} ran it, and is gone" in said


@pytest.mark.parametrize(("seconds_ago", "alive"), [(60, True), (120, False)])
def test_a_command_on_another_machine_is_believed_for_a_while(tmp_path: Path, seconds_ago: int, alive: bool) -> None:
    with heartbeat.Heartbeat(Folder(tmp_path), watch()):
        while not (tmp_path / heartbeat.HEARTBEAT_FILE).exists():
            time.sleep(0.01)
        content = json.loads((tmp_path / heartbeat.HEARTBEAT_FILE).read_text())
    content["holder"]["host"] = "another.machine"
    content["state"]["told"] -= seconds_ago
    (tmp_path / heartbeat.HEARTBEAT_FILE).write_text(json.dumps(content))
    told = heartbeat.read_heartbeat(Folder(tmp_path))
    assert told is not None and told.is_alive is alive and told.host == "another.machine"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"state": {"sweep": 1}, "holder": {}}', '{"state": [], "holder": 1}']
)
def test_what_is_no_pulse_tells_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / heartbeat.HEARTBEAT_FILE).write_text(text)
    assert heartbeat.read_heartbeat(Folder(tmp_path)) is None
