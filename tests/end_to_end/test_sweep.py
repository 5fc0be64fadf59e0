"""Whole sweeps through Ray, as a user starts them: the table, what is missing, what dies on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from conftest import RunSweep, build_sweep_command
from oracle import find_trial_processes, hash_best_weights, read_stable_table, wait_for
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from raylm.data import preparation, tokenizer
from raylm.report.analysis import load_results
from raylm.results.manifest import verify

pytestmark = pytest.mark.slow

GRID = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="small", space={{
    "dataset": {dataset!r}, "model": {model}, "context_length": {context}, "batch_size": tune.grid_search([2, 4]),
    "learning_rate": 1e-3, "epochs": 3, "dropout": 0.1,
}}, resources=Resources(cpus=1))
"""


def write_sweep(
    file: Path, dataset: Path, context: str = "tune.grid_search([16, 32])", model: str = "'gpt2-nano'"
) -> Path:
    file.write_text(GRID.format(dataset=str(dataset), context=context, model=model))
    return file


@pytest.fixture(scope="module")
def undisturbed(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sweep file and the results folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = write_sweep(folder / "small.py", small_text)
    done = subprocess.run(build_sweep_command(file, folder / "runs"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return file, folder / "runs" / "small"


@pytest.fixture
def started(tmp_path: Path, undisturbed: tuple[Path, Path]) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts the same sweep in another place, its output in a file; whatever still runs in the end is killed."""
    processes = []

    def start() -> subprocess.Popen[str]:
        with (tmp_path / "output").open("a") as output:
            command = build_sweep_command(undisturbed[0], tmp_path / "runs")
            processes.append(subprocess.Popen(command, stdout=output, stderr=output, text=True))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


def manifests(folder: Path) -> list[Path]:
    return list(folder.glob("small/launch-*/*/checkpoint_*/manifest.json"))


def test_the_table_the_checkpoints_and_the_record(undisturbed: tuple[Path, Path], run_sweep: RunSweep) -> None:
    _, folder = undisturbed
    rows = read_stable_table(folder)
    assert len(rows) == 4
    assert {row["status"] for row in rows.values()} == {"done"}
    assert all(float(row["val_loss"]) < float(row["first_loss"]) for row in rows.values())
    assert len(hash_best_weights(folder)) == 4
    for run in rows:  # the best epoch and the latest, nothing else
        steps = [json.loads(path.read_text())["progress"]["step"] for path in folder.glob(f"*/{run}/*/manifest.json")]
        assert len(steps) == (1 if rows[run]["best_epoch"] == "3" else 2)
        log = (folder / "launch-001" / run / "log.txt").read_text()
        assert "] begins" in log and all(f"] epoch {epoch}: train loss " in log for epoch in (1, 2, 3))
    assert not (folder / "live.json").exists()
    record = json.loads((folder / "sweep.json").read_text())
    assert [trial["run"] for trial in record["trials"]] == list(rows)
    (launch,) = record["launches"]
    assert launch["versions"]["ray"]
    assert launch["data"][0]["train_tokens"] > 1000


def test_a_finished_sweep_shows_its_table_without_starting_ray(undisturbed: tuple[Path, Path]) -> None:
    file, folder = undisturbed
    before = sorted(folder.rglob("*"))
    started = time.monotonic()
    arguments = build_sweep_command(file, folder.parent)
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env={**os.environ, "RAY_ADDRESS": "x"})
    assert time.monotonic() - started < 15  # Ray alone takes five; this is no measurement
    assert all(run in done.stdout for run in read_stable_table(folder))
    assert "starting Ray" not in done.stdout
    assert sorted(folder.rglob("*")) == before


def test_fewer_rows_of_a_finished_sweep_are_the_sweep_then(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(undisturbed[1].parent, tmp_path / "runs")
    arguments = build_sweep_command(undisturbed[0], tmp_path / "runs", "--set", "batch_size=2")
    assert "2 rows: 2 done" in subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert [row.config.batch_size for row in load_results(tmp_path / "runs" / "small").rows] == [2, 2]


def test_a_widened_grid_runs_only_its_new_rows(
    undisturbed: tuple[Path, Path], small_text: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed[1].parent, tmp_path / "runs")
    before = read_stable_table(undisturbed[1])
    file = write_sweep(tmp_path / "wide.py", small_text, context="tune.grid_search([16, 32, 24])")
    done = subprocess.run(build_sweep_command(file, tmp_path / "runs"), capture_output=True, text=True, check=True)
    assert "6 trials, 2 to be done" in done.stdout
    folder = tmp_path / "runs" / "small"
    assert len(list((folder / "launch-002").glob("*/params.json"))) == 2
    after = read_stable_table(folder)
    assert len(after) == 6
    assert {run: after[run] for run in before} == before


def test_killed_trials_are_not_seen_in_the_results(
    undisturbed: tuple[Path, Path],
    tmp_path: Path,
    started: Callable[[], subprocess.Popen[str]],
    run_sweep: RunSweep,
) -> None:
    driver = started()
    wait_for(lambda: manifests(tmp_path / "runs"))
    second = run_sweep(undisturbed[0])  # meanwhile, another command on the same folder
    assert second.returncode == 2
    assert f"is in use by process {driver.pid}" in second.stderr
    told = subprocess.run(
        [sys.executable, "-c", "from raylm.cli import app; app()", "status", str(tmp_path / "runs" / "small")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"run by process {driver.pid} on " in told and "of 4 trials" in told and " running" in told
    for process in find_trial_processes(driver.pid):
        process.kill()
    assert driver.wait(timeout=300) == 0
    said = (tmp_path / "output").read_text()
    assert "starts again from its latest checkpoint: The actor died" in said and "(raylet)" not in said
    logs = [file.read_text() for file in (tmp_path / "runs" / "small" / "launch-001").glob("*/log.txt")]
    assert any(", after: The actor died" in log and "] goes on from checkpoint_" in log for log in logs)
    assert read_stable_table(tmp_path / "runs" / "small") == read_stable_table(undisturbed[1])
    assert hash_best_weights(tmp_path / "runs" / "small") == hash_best_weights(undisturbed[1])


def test_a_sweep_interrupted_and_then_killed_ends_as_an_undisturbed_one(
    undisturbed: tuple[Path, Path], tmp_path: Path, started: Callable[[], subprocess.Popen[str]]
) -> None:
    storage = tmp_path / "runs"
    interrupted = started()
    wait_for(lambda: manifests(storage))
    interrupted.send_signal(signal.SIGTERM)
    assert interrupted.wait(timeout=60) == 130
    assert "the same command goes on from here" in (tmp_path / "output").read_text()

    there = len(manifests(storage))
    killed = started()
    wait_for(lambda: len(manifests(storage)) > there)
    killed.kill()
    killed.wait()

    assert started().wait(timeout=300) == 0
    assert len(list((storage / "small").glob("launch-*"))) == 3
    assert read_stable_table(storage / "small") == read_stable_table(undisturbed[1])
    assert hash_best_weights(storage / "small") == hash_best_weights(undisturbed[1])


def test_a_failing_trial_stops_no_other_and_can_be_tried_again(
    tmp_path: Path, small_text: Path, run_sweep: RunSweep
) -> None:
    model = tmp_path / "model"
    spoken = tokenizer.train([(small_text / "train.txt").read_text()])
    assert isinstance(spoken, PreTrainedTokenizerFast)
    spoken.save_pretrained(model)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(spoken), n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        model
    )
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-100])
    file = write_sweep(tmp_path / "s.py", small_text, "16", f"tune.grid_search(['gpt2-nano', {str(model)!r}])")

    first = run_sweep(file)
    assert first.returncode == 1
    rows = list(read_stable_table(tmp_path / "runs" / "small").values())
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed"]
    assert all("weights cannot be loaded" in row["reason"] for row in rows[2:])
    assert "--retry-failed" in first.stdout
    log = (tmp_path / "runs" / "small" / "launch-001" / rows[2]["run"] / "log.txt").read_text()
    assert "] ends, reason: " in log and "weights cannot be loaded" in log

    again = run_sweep(file)
    assert again.returncode == 1
    assert "starting Ray" not in again.stdout

    (model / "model.safetensors").write_bytes(whole)
    mended = run_sweep(file, "--retry-failed")
    assert mended.returncode == 0, mended.stderr
    assert {row["status"] for row in read_stable_table(tmp_path / "runs" / "small").values()} == {"done"}


def test_the_best_epoch_is_kept_beside_the_latest_and_a_diverged_trial_is_not_ranked(
    tmp_path: Path, small_text: Path, run_sweep: RunSweep
) -> None:
    file = tmp_path / "s.py"
    file.write_text(f"""
from ray import tune
from raylm import Sweep
sweep = Sweep(name="small", space={{
    "dataset": {str(small_text)!r}, "max_train_tokens": 1000, "context_length": 32, "epochs": 6, "max_grad_norm": 0.0,
    "warmup_ratio": 0.0, "lr_schedule": "constant", "learning_rate": tune.grid_search([1e-2, 1e30]),
}})
""")
    done = run_sweep(file)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "small"
    good, bad = read_stable_table(folder).values()
    assert (good["status"], bad["status"]) == ("done", "diverged")

    kept = [verify(path) for path in folder.glob(f"*/{good['run']}/checkpoint_*")]
    last_losses = {
        c["progress"]["evaluations"][-1]["epoch"]: c["progress"]["evaluations"][-1]["val_loss"] for c in kept if c
    }
    best = int(good["best_epoch"])
    assert sorted(last_losses) == [best, 6]  # at this rate it overfits: the best epoch is an earlier one
    assert best < 6
    assert float(good["val_loss"]) == last_losses[best] < last_losses[6]

    assert bad["val_loss"] == ""
    assert f"{bad['run']} diverged: the loss was not finite in epoch 1" in done.stdout
    assert f"/{good['run']}/" in done.stdout.splitlines()[-1]  # the best checkpoint


def test_resources_that_no_node_has_are_refused_before_anything_runs(
    tmp_path: Path, small_text: Path, run_sweep: RunSweep
) -> None:
    file = write_sweep(tmp_path / "s.py", small_text)
    file.write_text(file.read_text().replace("cpus=1", "gpus=1, cpus=64"))
    done = run_sweep(file)
    assert done.returncode == 2
    assert "64 CPUs and 1 GPUs" in done.stderr
    assert "no node of the cluster has" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs" / "small").glob("launch-*"))


RESOURCES = """
import ray
from raylm import Resources, UserError
from raylm.cluster import resolved_resources
ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, logging_level="ERROR")
for asked in (Resources(), Resources(gpus=0.5), Resources(gpus=1, cpus=4), Resources(gpus=0), Resources(gpus=2)):
    print(resolved_resources(asked))
for asked in (Resources(gpus=1, cpus=5), Resources(gpus=3)):
    try:
        resolved_resources(asked)
    except UserError as error:
        print(error)
"""


def test_trials_take_a_gpu_where_there_is_one() -> None:
    done = subprocess.run([sys.executable, "-c", RESOURCES], capture_output=True, text=True, check=True)
    *given, refused, refused_too = done.stdout.splitlines()
    assert given == [
        "{'cpu': 1, 'gpu': 1.0}",
        "{'cpu': 1, 'gpu': 0.5}",
        "{'cpu': 4, 'gpu': 1.0}",
        "{'cpu': 1, 'gpu': 0.0}",
        "{'cpu': 2, 'gpu': 2.0}",
    ]
    assert "5 CPUs and 1 GPUs" in refused
    assert "4 CPUs and 2 GPUs" in refused
    assert "3 CPUs and 3 GPUs, which no node of the cluster has" in refused_too


def test_changed_text_is_not_mixed_with_the_old(
    undisturbed: tuple[Path, Path], tmp_path: Path, small_text: Path
) -> None:
    text = shutil.copytree(small_text, tmp_path / "text")
    file = write_sweep(tmp_path / "s.py", text, context="16")
    arguments = build_sweep_command(file, tmp_path / "runs", "--set", "epochs=1")
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 0
    (text / "train.txt").write_text((text / "train.txt").read_text() + "more text\n")
    done = subprocess.run([*arguments, "--set", "seed=1"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "changed since launch 1" in done.stderr
    preparation.prepare(str(text), None, "gpt2-nano")  # the text itself is fine
