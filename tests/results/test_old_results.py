"""Results folder of raylm 0.1.0: it opens with the same rows, and its files are written as they were."""

from __future__ import annotations

import csv
import json
import math
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
from raylm.results.folder import list_launches, open_latest_checkpoint
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
    runs = dict(zip((row["run"] for row in old), (row["run"] for row in new), strict=True))
    assert runs == {name: row.config.run_name for name, row in zip(runs, results.rows, strict=True)}
    assert all(name in row.config.folder_names for name, row in zip(runs, results.rows, strict=True))
    added = dict.fromkeys(
        ("nats_per_byte", "lossless", "bits_per_byte", "zero_shot_loss", "zero_shot_loss_precision"), ""
    )
    for row, before in zip(new, old, strict=True):
        changed = {"run": runs[before["run"]], "precision": "float32" if row["val_loss"] else "", "best": row["best"]}
        changed |= {name: row[name] for name in ("perplexity", "word_perplexity")}
        assert row == {**before, **added, **changed}
        assert not row["val_loss"] or float(row["perplexity"]) == math.exp(float(row["val_loss"]))
    assert [row["best"] for row in new] == ["True", "False", "False"]
    assert list(new[0])[4:8] == ["epochs", "learning_rate", "max_grad_norm", "max_train_tokens"]
    table = [line.split(" | ") for line in formats.format_markdown(results, load_reference()).splitlines()]
    old_table = [line.split(" | ") for line in (folder / "results.md").read_text().splitlines()]
    assert [cells[:4] + cells[8:-1] for cells in table[:5]] == [cells[:-1] for cells in old_table[:5]]


def test_record_is_read_completely_and_written_as_it_was(folder: Path) -> None:
    results = load_results(folder)
    assert results.record is not None and results.record.sweep_id == "888c2713"
    (launch,) = results.launches
    assert (launch.number, launch.precision, launch.hardware.trials_on) == (1, "float32", "AMD EPYC")
    assert launch.slot is not None and (launch.slot.share, launch.slot.card.device) == (0.5, "cpu")
    assert (launch.data[0].fingerprint, launch.data[0].train_tokens) == ("bc05057d9a654c585390", 103_708)
    sweep_record.write(results.storage, results.record)
    text = (folder / RECORD_FILE).read_text()
    for trial in results.record.trials:
        name, old_name = trial.folder_names
        text = text.replace(name, old_name)
    assert text == (OLD_RESULTS / RECORD_FILE).read_text()


def test_manifests_are_written_as_they_were(folder: Path) -> None:
    paths = list(folder.rglob(MANIFEST_FILE))
    assert len(paths) == 3 and all(manifest.verify(path.parent) for path in paths)
    for path in paths:
        assert json_files.encode(json_files.decode(path.read_text(), Manifest)) == path.read_text()


def test_interrupted_trial_resumes_from_its_latest_checkpoint(folder: Path) -> None:
    results = load_results(folder)
    launches = list_launches(results.storage)
    with open_latest_checkpoint(results.storage, results.rows[2].config, launches) as checkpoint:
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
        "best": {
            "pydocs": {
                "run": "pydocs-gpt2-nano-32x4-lr0.001-e2-tokens2000-4a87c83998",
                "adj_val_loss": 13.45081617065089,
            }
        },
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
