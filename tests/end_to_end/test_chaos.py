"""Sweeps that are killed repeatedly, lose nodes or run out of time end like an uninterrupted one."""

from __future__ import annotations

import random
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from commands import EVALUATED, PATIENCE, Start, Uninterrupted, assert_same, has_name, kill, wait_until_training
from conftest import build_sweep_command
from oracle import find_trial_processes, read_stable_table
from ray_cluster import PROGRAMS
from reference_run import train_without_ray

from raylm.config.sweep_file import load_sweep
from raylm.results import manifest

pytest_plugins = ["commands"]
pytestmark = [pytest.mark.ray, pytest.mark.timeout(3000), pytest.mark.chaos]


@pytest.fixture(scope="module")
def search(long_text: str, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """A search, and its results through Ray."""
    file, storage = PROGRAMS / "long_search.py", tmp_path_factory.mktemp("search")
    arguments = build_sweep_command(file, storage, "--max-concurrent", "2")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["status"] for row in read_stable_table(storage / "chaos").values()} == {"done", "stopped"}
    return file, storage / "chaos"


@pytest.fixture(scope="module")
def many(long_text: str, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """Twenty trials, and their results without Ray."""
    file = PROGRAMS / "twenty_trials.py"
    return file, train_without_ray(load_sweep(file), tmp_path_factory.mktemp("many"))


# ---- kill -9 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kills", [2, 10])
def test_killed_search_ends_like_an_uninterrupted_one(
    search: Uninterrupted, start: Start, tmp_path: Path, kills: int
) -> None:
    moments = random.Random(kills)
    for _ in range(kills):
        command = start(search[0], "--max-concurrent", "2")
        command.wait_for_lines(EVALUATED, moments.randint(1, 40 // kills))
        time.sleep(moments.uniform(0, 0.3))
        assert command.running, "it was killed too late"
        command.kill()
    assert start(search[0], "--max-concurrent", "2").wait() == 0
    assert_same(tmp_path / "runs" / "chaos", search[1])


@pytest.mark.parametrize("kind", ["grid", "search"])
def test_command_killed_at_each_step_of_a_launch_ends_like_an_uninterrupted_one(
    request: pytest.FixtureRequest, start: Start, tmp_path: Path, kind: str
) -> None:
    file, uninterrupted = request.getfixturevalue(kind)
    options = ("--max-concurrent", "2") if kind == "search" else ()
    folder = tmp_path / "runs" / "chaos"
    trial = "launch-*/*"
    checkpoint = f"{trial}/checkpoint_*"
    before_checkpoints = (".running", "sweep.json", "launch-*", f"{trial}/status.json")
    for step in (*before_checkpoints, checkpoint, f"{checkpoint}/{manifest.MANIFEST_FILE}"):
        command, there = start(file, *options), set(folder.glob(step))
        if "checkpoint" in step:  # as if the machine lost its power: trials end at this moment too
            wait_until_training(command)
            command.refresh_processes()
        command.wait_for(partial(_more_than, there, folder, step), between=0.002)
        assert command.running, "it was killed too late"
        for process in command.processes:
            kill(process)
        command.kill() if command.running else command.process.wait()
    assert start(file, *options).wait() == 0
    assert_same(folder, uninterrupted)


def _more_than(there: set[Path], folder: Path, pattern: str) -> bool:
    return not there.issuperset(folder.glob(pattern))


def test_killed_coordinator_does_not_change_the_results(search: Uninterrupted, start: Start, tmp_path: Path) -> None:
    command = start(search[0], "--max-concurrent", "2")
    command.wait_for_lines(EVALUATED, 5)
    command.refresh_processes()
    (coordinator,) = [process for process in command.processes if has_name(process, "ray::Coordinator")]
    assert kill(coordinator)
    assert command.wait() == 0
    assert_same(tmp_path / "runs" / "chaos", search[1])


def test_sweep_resumes_after_all_of_ray_died(search: Uninterrupted, start: Start, tmp_path: Path) -> None:
    command = start(search[0], "--max-concurrent", "2")
    command.wait_for_lines(EVALUATED, 5)
    command.refresh_processes()
    for process in command.processes[1:]:
        kill(process)
    assert command.wait() == 1
    assert start(search[0], "--max-concurrent", "2").wait() == 0
    assert_same(tmp_path / "runs" / "chaos", search[1])


def test_fifty_killed_trial_processes_do_not_change_the_results(
    many: Uninterrupted, start: Start, tmp_path: Path
) -> None:
    moments, kills, commands = random.Random(0), 0, 1
    command = start(many[0])
    while kills < 50:
        command.wait_for_lines(EVALUATED, command.count(EVALUATED) + moments.randint(1, 3))
        time.sleep(moments.uniform(0, 0.5))
        if not command.running:
            assert command.wait() != 0, f"it was done after {kills} kills"
            command, commands = start(many[0]), commands + 1
        elif (found := find_trial_processes(command.process.pid)) and kill(moments.choice(found)):
            kills += 1
    while command.wait() != 0:
        assert commands < 10, command.read_output()
        command, commands = start(many[0]), commands + 1
    folder = tmp_path / "runs" / "chaos"
    assert_same(folder, many[1])


def test_sweep_resumes_after_its_time_budget(grid: Uninterrupted, start: Start, long_text: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "chaos"
    command = start(PROGRAMS / "hurried_grid.py")
    assert command.wait() == 0, "the budget is no failure, whatever is done by then"
    assert "the time budget is used up" in command.read_output()
    statuses = [row["status"] for row in read_stable_table(folder).values()]
    assert set(statuses) & {"interrupted", "pending"}, statuses
    assert set(statuses) <= {"done", "diverged", "interrupted", "pending"}

    assert start(grid[0]).wait() == 0
    assert_same(folder, grid[1])


# ---- nodes --------------------------------------------------------------------------------------------------------


def test_lost_node_does_not_change_the_results(
    search: Uninterrupted, start: Start, tmp_path: Path, ray_tmpdir: Path
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = {_raylet(node): node for node in (cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1))}
        command = start(search[0], "--max-concurrent", "2", "--address", cluster.address)
        command.wait_for_lines(EVALUATED, 5)
        helpers = [nodes[pid] for pid in _parents("ray::Coordinator") if pid in nodes]
        cluster.remove_node([*helpers, *nodes.values()][0], allow_graceful=False)  # the one whose loss hurts most
        cluster.add_node(num_cpus=1)
        assert command.wait() == 0
        assert_same(tmp_path / "runs" / "chaos", search[1])
    finally:
        cluster.shutdown()


def _raylet(node: Any) -> int:
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def _parents(name: str) -> list[int]:
    """Return the parents of all processes of a name."""
    return [process.ppid() for process in psutil.process_iter() if has_name(process, name)]
