"""Results folder of raylm 0.1.0: it opens with the same rows, and its files are written as they were."""

from __future__ import annotations

import csv
import json
import shutil
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylm import load_results
from raylm.cli.app import app
from raylm.monitor.heartbeat import read_heartbeat
from raylm.report import formats
from raylm.report.reference import load_reference
from raylm.results import json_files, manifest, sweep_record
from raylm.results.folder import open_latest_checkpoint
from raylm.results.heartbeat import HEARTBEAT_FILE, Heartbeat
from raylm.results.manifest import MANIFEST_FILE, Manifest
from raylm.results.sweep_record import RECORD_FILE

OLD_RESULTS = Path(__file__).parents[1] / "data" / "old_results"
"""One trial is done, one diverged, one was interrupted; see its README."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the old results folder."""
    return shutil.copytree(OLD_RESULTS, tmp_path / "old_results")


def test_rows_and_tables_are_the_same(folder: Path) -> None:
    results = load_results(folder)
    assert [row.status for row in results.rows] == ["done", "diverged", "interrupted"]
    old = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    new = list(csv.DictReader(formats.format_csv(results, load_reference()).splitlines()))
    assert list(new[0])[: len(old[0])] == list(old[0])
    added = {"nats_per_byte": "", "precision": "float32", "lossless": ""}
    assert new == [{**row, **added, "precision": "float32" if row["val_loss"] else ""} for row in old]
    assert formats.format_markdown(results, load_reference()) == (folder / "results.md").read_text()


def test_record_is_read_completely_and_written_as_it_was(folder: Path) -> None:
    results = load_results(folder)
    assert results.record is not None and results.record.sweep_id == "888c2713"
    (launch,) = results.launches
    assert (launch.number, launch.precision, launch.hardware.trials_on) == (1, "float32", "AMD EPYC")
    assert launch.slot is not None and (launch.slot.share, launch.slot.card.device) == (0.5, "cpu")
    assert (launch.data[0].fingerprint, launch.data[0].train_tokens) == ("bc05057d9a654c585390", 103_708)
    sweep_record.write(results.storage, results.record)
    assert (folder / RECORD_FILE).read_text() == (OLD_RESULTS / RECORD_FILE).read_text()


def test_manifests_are_written_as_they_were(folder: Path) -> None:
    paths = list(folder.rglob(MANIFEST_FILE))
    assert len(paths) == 3 and all(manifest.verify(path.parent) for path in paths)
    for path in paths:
        assert json_files.encode(json_files.decode(path.read_text(), Manifest)) == path.read_text()


def test_interrupted_trial_resumes_from_its_latest_checkpoint(folder: Path) -> None:
    results = load_results(folder)
    with open_latest_checkpoint(results.storage, results.rows[2].config) as checkpoint:
        assert checkpoint is not None and checkpoint.name == "checkpoint_000001"


def test_heartbeat_of_the_old_command_is_read(folder: Path) -> None:
    storage = load_results(folder).storage
    content = json.loads((folder / HEARTBEAT_FILE).read_text())
    last = read_heartbeat(storage)
    assert last is not None and not last.is_alive and (last.pid, last.host) == (23560, "example")
    assert last.state is not None and last.state.counts == {"done": 1, "running": 1, "diverged": 1}
    assert last.written_at == content["state"]["told"]

    content["state"]["told"] = time.time()
    (folder / HEARTBEAT_FILE).write_text(json.dumps(content))
    last = read_heartbeat(storage)
    assert last is not None and last.is_alive


def test_status_of_the_old_folder(folder: Path) -> None:
    status = json.loads(CliRunner().invoke(app, ["status", str(folder), "--json"]).stdout)
    assert status.pop("told") > time.time() - 60
    assert status == {
        "alive": False,
        "process": 23560,
        "host": "example",
        "sweep": "old_results",
        "total": 3,
        "counts": {"done": 1, "interrupted": 1, "diverged": 1},
        "running": [],
        "best": {"pydocs": {"run": "pydocs-gpt2-nano-32x4-lr0.001-e2-4a87c83998", "adj_val_loss": 13.45081617065089}},
        "share": 0.772520908004779,
        "seconds_left": None,
        "pausing": "",
    }


def test_heartbeat_of_a_new_command_replaces_the_old(folder: Path) -> None:
    storage = load_results(folder).storage
    with Heartbeat(storage):
        last = read_heartbeat(storage)
        assert last is not None and last.is_alive and last.state is None
    assert read_heartbeat(storage) is None
