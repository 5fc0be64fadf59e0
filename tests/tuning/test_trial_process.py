"""Memory of the machine and of a process: what is read, and that a process that takes too much says so and ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import RunHere
from trial_hooks import train_and_leak

from raylm import Resources, Sweep, machine
from raylm.tuning import trial_process, tuner

EATER = """
import sys, time
from raylm.tuning import trial_process
trial_process.WARN_FRACTION, trial_process.KILL_FRACTION = (float(fraction) for fraction in sys.argv[1:3])
trial_process.MemoryWatchdog(float(sys.argv[3]), lambda what: print(what, flush=True)).start()
time.sleep(2)
print("still there")
"""
"""A process for which the machine's memory is short at once, or never."""


def test_memory_in_use_is_part_of_all_there_is() -> None:
    used, total = machine.machine_memory()
    assert 0 < used < total <= psutil.virtual_memory().total


def test_the_limit_of_a_container_goes_before_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("2000000000\n")
    (tmp_path / "memory.current").write_text("900000000\n")
    (tmp_path / "memory.stat").write_text("anon 700000000\ninactive_file 100000000\n")
    monkeypatch.setattr(machine, "CGROUP_ROOT", tmp_path)
    assert machine.machine_memory() == (800_000_000, 2_000_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.machine_memory()[1] == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("tell_above", "end_above", "part", "said", "status"),
    [
        (0.0, 0.0, 0.0, ["out of memory: it took"], 1),
        (0.0, 2.0, 0.0, ["out of memory: it took", "still there"], 0),
        (0.0, 0.0, 1.0, ["still there"], 0),  # it takes no more than its part
        (2.0, 2.0, 0.0, ["still there"], 0),  # there is enough
    ],
)
def test_a_process_ends_where_memory_is_short_and_it_takes_more_than_its_part(
    tell_above: float, end_above: float, part: float, said: list[str], status: int
) -> None:
    command = [sys.executable, "-c", EATER, str(tell_above), str(end_above), str(part)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert [line.split(" 0.")[0] for line in done.stdout.splitlines()] == said


def test_what_a_process_keeps_between_two_trials_is_noticed_and_what_it_frees_is_not() -> None:
    footprint = trial_process.LeakCheck()
    kept = [np.ones(2**22)]
    footprint.measure()
    assert footprint.leaked_bytes == 0
    kept += [np.ones(2**22) for _ in range(3)]  # 32 MiB each
    footprint.measure()
    assert footprint.leaked_bytes == pytest.approx(3 * 2**25, rel=0.2)
    footprint.measure(lambda: 2**30)
    assert footprint.leaked_bytes == pytest.approx(3 * 2**25 + 2**30, rel=0.1)
    del kept[1:]
    footprint.measure()
    assert footprint.leaked_bytes < 2**25


def test_worker_that_has_grown_is_replaced_by_a_fresh_one(
    small_text: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of raylm leaks; the trials of this test do."""
    monkeypatch.setattr(tuner, "train_gpt2", train_and_leak)
    rates = {"grid_search": [1e-3, 2e-3, 3e-3]}
    space = {"dataset": str(small_text), "context_length": 32, "max_train_tokens": 500, "learning_rate": rates}
    sweep = Sweep(name="leaks", space=space, resources=Resources(cpus=1, gpus=0))
    done = run_here(sweep, max_concurrent=1)
    assert done.exit_code == 0, done.output
    assert "its process has grown by 0." in done.output and "3 rows: 3 done" in done.output
