"""Trials on several GPUs through Ray Tune: Ray is told of GPUs that are not there, and each rank computes on a CPU."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from conftest import RunHere
from oracle import hash_best_weights, read_stable_table, wait_for
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from ray_cluster import FinishedRun, run_on_cluster
from reference_run import train_without_ray
from trial_hooks import RANK_ERROR, FirstRank

from raylm import Resources, Sweep
from raylm.results.manifest import verify

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def sweep(small_text: Path) -> Sweep:
    """Two trials on two GPUs each. At a learning rate of 1e-3, a hundred steps would make 1e-3 of rounding.

    In bfloat16, products of other shapes round differently: val losses of one and two ranks differ by 2e-5.
    """
    space = {
        "dataset": str(small_text),
        "context_length": 16,
        "batch_size": {"grid_search": [2, 3]},
        "learning_rate": 1e-4,
        "epochs": 4,
    }
    return Sweep(name="shared", space=space, precision="float32", resources=Resources(gpus=2))


@pytest.fixture(scope="module")
def finished(sweep: Sweep, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """The sweep run to its end. Not to be changed."""
    return run_on_cluster(sweep, tmp_path_factory.mktemp("finished"), ray_address)


def find_second_ranks() -> list[psutil.Process]:
    """Return the processes of this process's Ray that train as a second rank at this moment."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            found += [process] if " rank 1" in "".join(process.cmdline()) else []
        except psutil.Error:
            continue  # it has just ended
    return found


def manifests(folder: Path) -> list[Path]:
    """Return the manifests of all whole checkpoints."""
    return list(folder.glob("launch-*/*/checkpoint_*/manifest.json"))


def test_table_is_that_of_one_rank_per_trial(sweep: Sweep, finished: FinishedRun, tmp_path: Path) -> None:
    assert finished.exit_code == 0, finished.output
    one, two = read_stable_table(train_without_ray(sweep, tmp_path)), read_stable_table(finished.folder)
    assert list(one) == list(two) and len(one) == 2
    for run, row in one.items():
        for name in ("train_loss", "val_loss", "adj_val_loss"):
            assert float(two[run][name]) == pytest.approx(float(row[name]), rel=5e-6)
        for name in ("status", "steps", "tokens_seen", "best_epoch"):
            assert two[run][name] == row[name]
    contents = [verify(path.parent) for path in manifests(finished.folder)]
    assert {content.progress.ranks for content in contents if content} == {2}


def test_killed_rank_does_not_change_the_results(
    sweep: Sweep, finished: FinishedRun, run_here: RunHere, tmp_path: Path
) -> None:
    killed: list[psutil.Process] = []

    def kill_a_rank() -> None:
        wait_for(lambda: manifests(tmp_path / "runs" / "shared") and find_second_ranks(), 300)
        killed.extend(find_second_ranks())
        killed[0].kill()

    killer = threading.Thread(target=kill_a_rank)
    killer.start()
    done = run_here(sweep)
    killer.join()
    assert done.exit_code == 0
    assert done.output.count("starts again from its latest checkpoint: the process of") == 1
    assert read_stable_table(done.folder) == read_stable_table(finished.folder)
    assert hash_best_weights(done.folder) == hash_best_weights(finished.folder)
    psutil.wait_procs(killed, timeout=60)
    assert find_second_ranks() == []


@pytest.mark.chaos
def test_ranks_save_and_end_at_an_interrupt_and_resume_later(
    sweep: Sweep, finished: FinishedRun, run_here: RunHere, tmp_path: Path
) -> None:
    def interrupt() -> None:
        wait_for(lambda: manifests(tmp_path / "runs" / "shared"), 300)
        os.kill(os.getpid(), 15)

    interrupter = threading.Thread(target=interrupt)
    interrupter.start()
    interrupted = run_here(sweep)
    interrupter.join()
    assert interrupted.exit_code == 130
    wait_for(lambda: not find_second_ranks(), 60)
    assert "interrupted" in {row["status"] for row in read_stable_table(interrupted.folder).values()}
    assert run_here(sweep).exit_code == 0
    assert read_stable_table(interrupted.folder) == read_stable_table(finished.folder)
    assert hash_best_weights(interrupted.folder) == hash_best_weights(finished.folder)


@pytest.mark.parametrize("stuck", [False, True])
def test_error_of_a_rank_ends_the_trial(ray_address: str, tmp_path: Path, stuck: bool) -> None:
    error_file = tmp_path / "error"
    error_file.touch()
    ray.init(ray_address, log_to_driver=False, logging_level="ERROR")
    try:
        group = placement_group([{"CPU": 1, "GPU": 1}] * 2, strategy="STRICT_PACK")
        strategy = PlacementGroupSchedulingStrategy(group, 0)
        first: Any = ray.remote(num_cpus=1, num_gpus=1, scheduling_strategy=strategy)(FirstRank).remote()
        with pytest.raises(ray.exceptions.ActorDiedError if stuck else ValueError) as caught:
            ray.get(first.train.remote(stuck, error_file))
        remove_placement_group(group)
    finally:
        ray.shutdown()
    assert (RANK_ERROR in str(caught.value)) == (not stuck)
    assert error_file.read_text() == (repr(ValueError(RANK_ERROR)) if stuck else "")
