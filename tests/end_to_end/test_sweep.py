"""Whole sweeps through Ray: tables and checkpoints, wider and narrower grids, failures, killed processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import RunHere, build_sweep_command
from oracle import find_trial_processes, hash_best_weights, read_stable_table, wait_for
from ray_cluster import PROGRAMS, FinishedRun, run_on_cluster
from reference_run import train_without_ray
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from raylm import Resources, Sweep, UserError
from raylm.cli.app import app
from raylm.config.dataset import DatasetSpec
from raylm.config.sweep_file import load_sweep
from raylm.data import preparation, tokenizer
from raylm.errors import WorkError
from raylm.report.analysis import load_results
from raylm.results.folder import load_rows
from raylm.results.manifest import verify
from raylm.results.rows import INTERRUPTED
from raylm.results.storage import Folder
from raylm.training import model_check
from raylm.tuning.connection import session
from raylm.tuning.resources.capacity import Capacity

pytestmark = pytest.mark.ray

FILE = PROGRAMS / "four_trials.py"
CPU = Resources(cpus=1, gpus=0)
NO_CLUSTER = "127.0.0.1:9"
"""Address at which nothing listens."""


def small(dataset: Path, **fields: Any) -> Sweep:
    """Return a sweep of short trials on a text."""
    common = {"dataset": str(dataset), "model": "gpt2-nano", "context_length": 16, "dropout": 0.1, "epochs": 1}
    return Sweep(name="small", space={**common, **fields}, resources=CPU)


@pytest.fixture(scope="module")
def sweep(small_text: Path) -> Sweep:
    """The sweep of `FILE`."""
    return load_sweep(FILE)


@pytest.fixture(scope="module")
def reference(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its results folder, made without Ray."""
    return train_without_ray(sweep, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def finished(sweep: Sweep, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The sweep run through Ray. Not to be changed."""
    return run_on_cluster(sweep, tmp_path_factory.mktemp("finished"), ray_address)


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the finished sweep's results folder, where `run_here` finds it."""
    return shutil.copytree(finished.folder, tmp_path / "runs" / "small")


# ---- results of a sweep -------------------------------------------------------------------------------------------


def test_sweep_comes_to_the_same_table_and_weights_as_without_ray(finished: FinishedRun, reference: Path) -> None:
    assert finished.exit_code == 0
    assert read_stable_table(finished.folder) == read_stable_table(reference)
    assert hash_best_weights(finished.folder) == hash_best_weights(reference)


def test_table_checkpoints_and_record(finished: FinishedRun) -> None:
    folder, rows = finished.folder, read_stable_table(finished.folder)
    assert len(rows) == 4
    assert {row["status"] for row in rows.values()} == {"done"}
    assert all(float(row["val_loss"]) < float(row["first_loss"]) for row in rows.values())
    assert len(hash_best_weights(folder)) == 4
    for run in rows:  # the best epoch and the latest, nothing else
        steps = [json.loads(path.read_text())["progress"]["step"] for path in folder.glob(f"*/{run}/*/manifest.json")]
        assert len(steps) == (1 if rows[run]["best_epoch"] == "3" else 2)
        log = (folder / "launch-001" / run / "log.txt").read_text()
        assert "] starts" in log and all(f"] epoch {epoch}: train loss " in log for epoch in (1, 2, 3))
    assert not (folder / "live.json").exists()
    record = json.loads((folder / "sweep.json").read_text())
    assert [trial["run"] for trial in record["trials"]] == list(rows)
    (launched,) = record["launches"]
    assert launched["versions"]["ray"]
    assert launched["data"][0]["train_tokens"] > 1000


def test_finished_sweep_shows_its_table_without_ray(
    sweep: Sweep, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "connect_ray", None)
    before = sorted(copied.rglob("*"))
    done = run_on_cluster(sweep, tmp_path / "runs", NO_CLUSTER)
    assert done.exit_code == 0
    assert all(run in done.output for run in read_stable_table(copied))
    assert "starting Ray" not in done.output
    assert sorted(copied.rglob("*")) == before


def test_fewer_rows_of_a_finished_sweep_are_the_sweep_then(sweep: Sweep, copied: Path, tmp_path: Path) -> None:
    done = run_on_cluster(load_sweep(FILE, ["batch_size=2"]), tmp_path / "runs", NO_CLUSTER)
    assert "2 rows: 2 done" in done.output
    assert [row.config.batch_size for row in load_results(copied).rows] == [2, 2]


def test_widened_grid_runs_only_its_new_rows(sweep: Sweep, copied: Path, run_here: RunHere) -> None:
    before = read_stable_table(copied)
    assert isinstance(sweep.space, dict)
    wide = replace(sweep, space={**sweep.space, "context_length": {"grid_search": [16, 32, 24]}})
    done = run_here(wide)
    assert done.exit_code == 0
    assert "6 trials, 2 remaining" in done.output
    assert len(list((copied / "launch-002").glob("*/params.json"))) == 2
    after = read_stable_table(copied)
    assert len(after) == 6
    assert {run: after[run] for run in before} == before


def test_best_epoch_is_kept_beside_the_latest_and_a_diverged_trial_is_not_ranked(
    small_text: Path, run_here: RunHere
) -> None:
    fields: dict[str, Any] = {"max_train_tokens": 1000, "context_length": 32, "epochs": 6, "max_grad_norm": 0.0}
    fields |= {"dropout": 0.0, "warmup_ratio": 0.0, "lr_schedule": "constant"}
    done = run_here(small(small_text, learning_rate={"grid_search": [1e-2, 1e30]}, **fields))
    assert done.exit_code == 0
    good, bad = read_stable_table(done.folder).values()
    assert (good["status"], bad["status"]) == ("done", "diverged")

    contents = [verify(path) for path in done.folder.glob(f"*/{good['run']}/checkpoint_*")]
    evaluations = [content.progress.evaluations[-1] for content in contents if content]
    losses = {evaluation.epoch: evaluation.val_loss for evaluation in evaluations}
    best = int(good["best_epoch"])
    assert sorted(losses) == [best, 6]  # at this rate it overfits: the best epoch is an earlier one
    assert best < 6
    assert float(good["val_loss"]) == losses[best] < losses[6]

    assert bad["val_loss"] == ""
    assert f"{bad['run']} diverged: the loss was not finite in epoch 1" in done.output
    assert f"/{good['run']}/" in done.output.splitlines()[-1]  # the best checkpoint


# ---- what is refused, and what fails ------------------------------------------------------------------------------


def test_launch_that_fails_writes_the_results_of_what_is_done(sweep: Sweep, copied: Path, run_here: RunHere) -> None:
    assert isinstance(sweep.space, dict)
    wide = replace(sweep, space={**sweep.space, "context_length": {"grid_search": [16, 32, 24]}})
    before = read_stable_table(copied)
    (copied / "launch-002").write_text("no folder")
    for name in ("results.csv", "results.md", "report.html"):
        (copied / name).unlink()
    with pytest.raises((WorkError, OSError)):
        run_here(wide)
    after = read_stable_table(copied)
    assert len(after) == 6 and {run: after[run] for run in before} == before
    assert (copied / "results.md").exists() and (copied / "report.html").exists()


@pytest.mark.nightly
def test_removed_results_folder_ends_the_launch_and_is_named(
    small_text: Path, tmp_path: Path, run_here: RunHere
) -> None:
    folder = tmp_path / "runs" / "small"

    def remove() -> None:
        wait_for(lambda: any(folder.glob("launch-001/*/checkpoint_*/manifest.json")), 120)
        shutil.rmtree(folder)

    removal = threading.Thread(target=remove)
    removal.start()
    with pytest.raises(WorkError, match=rf"^{folder} was removed while trials ran"):
        run_here(small(small_text, epochs=60))
    removal.join()
    assert not (folder / "results.md").exists()


def test_failing_trial_stops_no_other_and_can_be_retried(
    small_text: Path, tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_check, "MAX_CHECKED_PARAMETERS", 0)  # as of a model whose weights are not loaded before
    model = tmp_path / "model"
    trained, _ = tokenizer.train([[(small_text / "train.txt").read_text()]])
    assert isinstance(trained, PreTrainedTokenizerFast)
    trained.save_pretrained(model)
    config = GPT2Config(vocab_size=len(trained), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(model)
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-100])
    sweep = small(small_text, model={"grid_search": ["gpt2-nano", str(model)]})

    first = run_here(sweep)
    assert first.exit_code == 1
    rows = list(read_stable_table(first.folder).values())
    assert [row["status"] for row in rows] == ["done", "failed"]
    assert "weights cannot be loaded" in rows[1]["reason"]
    assert "--retry-failed" in first.output
    log = (first.folder / "launch-001" / rows[1]["run"] / "log.txt").read_text()
    assert "] ends, reason: " in log and "weights cannot be loaded" in log

    again = run_here(sweep)
    assert again.exit_code == 1
    assert "starting Ray" not in again.output

    (model / "model.safetensors").write_bytes(whole)
    assert run_here(sweep, retry_failed=True).exit_code == 0
    assert {row["status"] for row in read_stable_table(first.folder).values()} == {"done"}


def test_resources_that_no_node_has_are_refused_before_anything_runs(
    small_text: Path, tmp_path: Path, run_here: RunHere
) -> None:
    with pytest.raises(UserError, match=r"64 CPUs and 1 GPUs.*no node of the cluster has"):
        run_here(replace(small(small_text), resources=Resources(gpus=1, cpus=64)))
    assert not list((tmp_path / "runs" / "small").glob("launch-*"))


def test_trials_take_a_gpu_if_there_is_one() -> None:
    capacity = Capacity([{"CPU": 4, "GPU": 2}])
    requests = (Resources(), Resources(gpus=0.5), Resources(gpus=1, cpus=4), Resources(gpus=0), Resources(gpus=2))
    assert [capacity.resolve_resources(requested) for requested in requests] == [
        {"cpu": 1, "gpu": 1.0},
        {"cpu": 1, "gpu": 0.5},
        {"cpu": 4, "gpu": 1.0},
        {"cpu": 1, "gpu": 0.0},
        {"cpu": 2, "gpu": 2.0},
    ]
    with pytest.raises(UserError, match=r"5 CPUs and 1 GPUs.*4 CPUs and 2 GPUs"):
        capacity.resolve_resources(Resources(gpus=1, cpus=5))
    with pytest.raises(UserError, match=r"3 CPUs and 3 GPUs, which no node of the cluster has"):
        capacity.resolve_resources(Resources(gpus=3))


def test_changed_text_is_not_mixed_with_the_old(tmp_path: Path, small_text: Path, run_here: RunHere) -> None:
    text = shutil.copytree(small_text, tmp_path / "text")
    assert run_here(small(text)).exit_code == 0
    (text / "train.txt").write_text((text / "train.txt").read_text() + "more text\n")
    with pytest.raises(UserError, match="changed since launch 1"):
        run_here(small(text, seed=1))
    preparation.prepare(DatasetSpec(str(text)), None, "gpt2-nano")  # the text itself is fine


# ---- killed and interrupted ---------------------------------------------------------------------------------------


@pytest.fixture
def start(ray_address: str, small_text: Path, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a command that runs `FILE` on the shared Ray, its output in a file; what still runs is killed."""
    processes = []

    def start_command() -> subprocess.Popen[str]:
        with (tmp_path / "output").open("a") as output:
            command = build_sweep_command(FILE, tmp_path / "runs", "--address", ray_address)
            processes.append(subprocess.Popen(command, stdout=output, stderr=output, text=True))
        return processes[-1]

    yield start_command
    for process in processes:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


def manifests(storage: Path) -> list[Path]:
    """Return the manifests of all whole checkpoints."""
    return list(storage.glob("small/launch-*/*/checkpoint_*/manifest.json"))


def has_resumable_trial(sweep: Sweep, folder: Path) -> bool:
    """Return whether a trial has a checkpoint and is not done."""
    rows = load_rows(Folder(folder), sweep.trials()).rows
    return any(row.status == INTERRUPTED and row.latest_checkpoint for row in rows)


def test_killed_trials_do_not_change_the_results(
    sweep: Sweep, reference: Path, tmp_path: Path, start: Callable[[], subprocess.Popen[str]]
) -> None:
    storage, folder = tmp_path / "runs", tmp_path / "runs" / "small"
    driver = start()
    wait_for(lambda: manifests(storage))
    with pytest.raises(UserError, match=f"is in use by process {driver.pid}"):  # another command on the same folder
        run_on_cluster(sweep, storage, NO_CLUSTER)
    status = CliRunner().invoke(app, ["status", str(folder)]).stdout
    assert f"run by process {driver.pid} on " in status and "of 4 trials" in status and " running" in status
    found: list[psutil.Process] = []

    def have_both_processes() -> bool:
        """Find both: for a moment after each report, the name of a trial's process is another."""
        found[:] = find_trial_processes(os.getpid())
        return has_resumable_trial(sweep, folder) and len(found) == 2

    wait_for(have_both_processes)
    for process in found:
        process.kill()
    assert driver.wait(timeout=300) == 0
    output = (tmp_path / "output").read_text()
    assert "starts again from its latest checkpoint: The actor died" in output and "(raylet)" not in output
    logs = [file.read_text() for file in (folder / "launch-001").glob("*/log.txt")]
    assert any(", after: The actor died" in log and "] resumes from checkpoint_" in log for log in logs)
    assert read_stable_table(folder) == read_stable_table(reference)
    assert hash_best_weights(folder) == hash_best_weights(reference)


def test_sweep_interrupted_and_then_killed_ends_as_an_uninterrupted_one(
    reference: Path, tmp_path: Path, start: Callable[[], subprocess.Popen[str]]
) -> None:
    storage = tmp_path / "runs"
    interrupted = start()
    wait_for(lambda: manifests(storage))
    interrupted.send_signal(signal.SIGTERM)
    assert interrupted.wait(timeout=120) == 130
    assert "run the same command to resume" in (tmp_path / "output").read_text()

    before = len(manifests(storage))
    killed = start()
    wait_for(lambda: len(manifests(storage)) > before)
    killed.kill()
    killed.wait()

    assert start().wait(timeout=300) == 0
    assert len(list((storage / "small").glob("launch-*"))) == 3
    assert read_stable_table(storage / "small") == read_stable_table(reference)
    assert hash_best_weights(storage / "small") == hash_best_weights(reference)
