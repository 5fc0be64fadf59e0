"""Trials on several GPUs through Ray Tune: Ray is told of GPUs that are not there, and each rank computes on a CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from oracle import hash_best_weights, read_stable_table, wait_for

from raylm.results.manifest import verify

pytestmark = pytest.mark.slow

SWEEP = """
import functools
import sys

import ray
from ray import tune

from raylm import Resources, Sweep, run
from raylm.tuning import tuner

if __name__ == "__main__":
    _, text, storage, gpus = sys.argv
    ray.init = functools.partial(ray.init, num_cpus=2, num_gpus=2)
    tuner.resolve_device = lambda resources: "cpu"
    space = {
        "dataset": text, "context_length": 16, "batch_size": tune.grid_search([2, 3]), "learning_rate": 1e-4,
        "epochs": 4,
    }
    sweep = Sweep(name="shared", space=space, resources=Resources(gpus=int(gpus)))
    sys.exit(run(sweep, storage=storage, address="local").exit_code)
"""
"""Two trials, each on as many GPUs as the command line says. At 1e-3, a hundred steps make 1e-3 of rounding."""

Start = Callable[..., "subprocess.Popen[bytes]"]


def descendants(process: int) -> list[psutil.Process]:
    """Of a command; Ray's processes among them."""
    return [one for one in psutil.Process(process).children(recursive=True) if one.is_running()]


def peers(process: int) -> list[psutil.Process]:
    """The ranks below a command that train at this moment, but for the first ones."""
    found = []
    for one in descendants(process):
        try:
            found += [one] if " rank 1" in "".join(one.cmdline()) else []
        except psutil.Error:
            continue  # it ended while it was looked at
    return found


def none_is_left(family: list[psutil.Process]) -> None:
    """Waits until Ray's processes have ended, a little after its driver."""
    psutil.wait_procs(family, timeout=60)
    assert [one for one in family if one.is_running()] == []


def manifests(storage: Path) -> list[Path]:
    return list(storage.glob("shared/launch-*/*/checkpoint_*/manifest.json"))


@pytest.fixture(scope="module")
def start(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts the sweep as a shell does, its output in a file; whatever still runs in the end is killed."""
    script = tmp_path_factory.mktemp("script") / "shared.py"
    script.write_text(SWEEP)
    started = []

    def command(storage: Path, gpus: int = 2) -> subprocess.Popen[bytes]:
        storage.mkdir(exist_ok=True)
        with (storage / "output").open("ab") as output:
            arguments = [sys.executable, str(script), str(small_text), str(storage), str(gpus)]
            started.append(subprocess.Popen(arguments, stdout=output, stderr=output, start_new_session=True))
        return started[-1]

    yield command
    for process in started:
        if process.poll() is None:
            for one in descendants(process.pid):
                one.kill()
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of the sweep with two GPUs per trial."""
    storage = tmp_path_factory.mktemp("undisturbed")
    assert start(storage).wait(timeout=300) == 0, (storage / "output").read_text()
    return storage / "shared"


def test_the_table_is_that_of_one_gpu_per_trial(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    assert start(tmp_path, gpus=1).wait(timeout=300) == 0, (tmp_path / "output").read_text()
    one, two = read_stable_table(tmp_path / "shared"), read_stable_table(undisturbed)
    assert list(one) == list(two) and len(one) == 2
    for run, row in one.items():
        for name in ("train_loss", "val_loss", "adj_val_loss"):
            assert float(two[run][name]) == pytest.approx(float(row[name]), rel=5e-6)
        for name in ("status", "steps", "tokens_seen", "best_epoch"):
            assert two[run][name] == row[name]
    contents = [verify(path.parent) for path in manifests(undisturbed.parent)]
    assert {content.progress.ranks for content in contents if content} == {2}


def test_a_killed_rank_is_not_seen_in_the_results(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    sweep = start(tmp_path)
    wait_for(lambda: peers(sweep.pid))
    (peer,) = peers(sweep.pid)
    family = descendants(sweep.pid)
    wait_for(lambda: manifests(tmp_path))
    peer.kill()
    assert sweep.wait(timeout=300) == 0
    output = (tmp_path / "output").read_text()
    assert output.count("starts again from its latest checkpoint: the process of") == 1
    assert read_stable_table(tmp_path / "shared") == read_stable_table(undisturbed)
    assert hash_best_weights(tmp_path / "shared") == hash_best_weights(undisturbed)
    none_is_left(family)


@pytest.mark.chaos
def test_ranks_save_and_end_at_an_interrupt_and_go_on_later(start: Start, undisturbed: Path, tmp_path: Path) -> None:
    sweep = start(tmp_path)
    wait_for(lambda: peers(sweep.pid))
    family = descendants(sweep.pid)
    wait_for(lambda: manifests(tmp_path))
    os.killpg(sweep.pid, signal.SIGINT)
    interrupted = time.monotonic()
    assert sweep.wait(timeout=120) == 130
    assert time.monotonic() - interrupted < 60
    none_is_left(family)
    assert "interrupted" in {row["status"] for row in read_stable_table(tmp_path / "shared").values()}
    assert start(tmp_path).wait(timeout=300) == 0
    assert read_stable_table(tmp_path / "shared") == read_stable_table(undisturbed)
    assert hash_best_weights(tmp_path / "shared") == hash_best_weights(undisturbed)


JOINED = """
import contextlib
import sys
import time
from functools import partial
from pathlib import Path

import ray
import torch
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raylm import peers


def work(corpus, ranks, stuck):
    if ranks.rank == 1:
        raise ValueError("the second rank cannot go on")
    if stuck:
        time.sleep(600)  # as in a collective of NCCL
    yield ranks.add_up(torch.ones(1))


class First:
    def train(self, stuck, noted):
        here = partial(work, stuck=stuck)
        note = lambda error: Path(noted).write_text(repr(error))
        with peers.joined("run", here, ray.put(0), contextlib.nullcontext, 2, "cpu", note) as ranks:
            list(here(corpus=0, dist_context=ranks))


if __name__ == "__main__":
    ray.init("local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    group = placement_group([{"CPU": 1, "GPU": 1}] * 2, strategy="STRICT_PACK")
    there = PlacementGroupSchedulingStrategy(group, 0)
    first = ray.remote(num_cpus=1, num_gpus=1, scheduling_strategy=there)(First).remote()
    try:
        ray.get(first.train.remote(sys.argv[1] == "stuck", sys.argv[2]))
    except ray.exceptions.RayError as error:
        print(repr(getattr(error, "cause", error)).splitlines()[0])
"""


RAISED = "ValueError('the second rank cannot go on')"


@pytest.mark.parametrize(("first", "ended_by", "noted"), [("waits", RAISED, ""), ("stuck", "ActorDiedError", RAISED)])
def test_what_a_rank_raises_ends_the_trial(tmp_path: Path, first: str, ended_by: str, noted: str) -> None:
    script, note = tmp_path / "joined.py", tmp_path / "noted"
    script.write_text(JOINED)
    note.touch()
    arguments = [sys.executable, str(script), first, str(note)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=180, check=True)
    said = [line for line in done.stdout.splitlines() if "(raylet)" not in line]  # which may come before or after
    assert said[-1].startswith(ended_by)
    assert note.read_text() == noted
