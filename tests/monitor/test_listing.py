"""Sweeps of a storage: their states, and those that run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from raylm.cli.app import app
from raylm.monitor.listing import list_sweeps
from raylm.results.heartbeat import HEARTBEAT_FILE, ProcessIdentity, format_heartbeat
from raylm.results.storage import Folder

OLD_RESULTS = Path(__file__).resolve().parents[1] / "data" / "old_results"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Storage with a running, an unfinished, a finished and a damaged sweep, and other files."""
    for name in ("running", "unfinished", "finished", "damaged"):
        shutil.copytree(OLD_RESULTS, tmp_path / name)
        (tmp_path / name / HEARTBEAT_FILE).unlink()
    (tmp_path / "running" / HEARTBEAT_FILE).write_text(format_heartbeat(ProcessIdentity.current()))
    record = json.loads((tmp_path / "finished" / "sweep.json").read_text())
    record["trials"] = record["trials"][:1]
    (tmp_path / "finished" / "sweep.json").write_text(json.dumps(record))
    (tmp_path / "damaged" / "sweep.json").write_text("{")
    (tmp_path / "notes").mkdir()
    (tmp_path / "a.txt").touch()
    return tmp_path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_each_sweep_is_listed_with_its_state_rows_best_and_age(runs: Path) -> None:
    sweeps = {sweep.name: sweep for sweep in list_sweeps(Folder(runs))}
    assert {name: sweep.state for name, sweep in sweeps.items()} == {
        "damaged": "unreadable", "finished": "done", "running": "running", "unfinished": "unfinished"
    }  # fmt: skip
    assert (sweeps["finished"].done, sweeps["finished"].rows, sweeps["unfinished"].rows) == (1, 1, 3)
    assert sweeps["unfinished"].best == ("pydocs adj val loss 13.451",)
    assert (sweeps["unfinished"].age_seconds or 0) > 0
    done = invoke("ls", runs)
    assert done.exit_code == 0 and "4 sweeps" in done.output and "damaged: " in done.output
    assert [sweep["name"] for sweep in json.loads(invoke("ls", runs, "--json").output)] == sorted(sweeps)


def test_status_of_a_storage_shows_the_sweeps_that_run(runs: Path) -> None:
    done = invoke("status", runs)
    assert done.exit_code == 0 and f"run by process {os.getpid()}" in done.output
    assert "1 of 4 sweeps" in done.output and "unfinished:" not in done.output
    (entry,) = json.loads(invoke("status", runs, "--json").output)
    assert entry["results"] == str(runs / "running") and entry["process"] == os.getpid()
    assert invoke("status", runs, "--watch").exit_code == 2
    assert invoke("status", runs / "unfinished").exit_code == 0


def test_location_without_sweeps_is_refused(runs: Path) -> None:
    for arguments in (["ls", runs / "notes"], ["ls", runs / "none"], ["status", runs / "notes"], ["ls", "--json"]):
        assert invoke(*arguments).exit_code == 2
