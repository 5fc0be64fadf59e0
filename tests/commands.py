"""Sweeps as a shell starts them, to be watched and killed. Its fixtures come with `pytest_plugins = ["commands"]`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import psutil
import pytest
from conftest import build_sweep_command
from oracle import find_trial_processes, hash_best_weights, read_stable_table, wait_for
from ray_cluster import PROGRAMS
from reference_run import train_without_ray

from raylm.config.sweep_file import load_sweep

PATIENCE = 900.0
"""Seconds to wait for the end of a sweep; a busy machine takes long."""
EVALUATED = "  epoch "
"""Text in each line of output about an evaluation."""
STARTED = "  started"
"""Text in each line of output about a trial that starts, for the first time or again."""
SLOW_TO_END = ("ray::DashboardA", "ray::RuntimeEnv")
"""Agents of Ray that look for a killed Ray for a minute before they end; they hold nothing."""
TRAINED_SECONDS = 2.0
"""Processor time after which a trial is in the middle of its epoch: its model is loaded, its end is far."""

Start = Callable[..., "Command"]
Uninterrupted = tuple[Path, Path]
"""Sweep file, and the results folder of an uninterrupted run."""


@dataclass
class Command:
    """`python -m raylm.sweep` in a process group of its own, as a shell starts it, its output in a file."""

    process: subprocess.Popen[bytes]
    output: Path
    processes: list[psutil.Process] = field(default_factory=list)
    """Processes of the command at the last call of `refresh_processes`."""

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def read_output(self) -> str:
        return self.output.read_text()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait until the command has ended, and return its exit code."""
        return self.process.wait(timeout=seconds)

    def wait_for(self, condition: Callable[[], object], between: float = 0.02) -> None:
        """Wait until a condition holds; fail if the command ends before."""
        wait_for(lambda: condition() or not self.running, PATIENCE, between)
        assert condition() or self.running, self.read_output()

    def count(self, text: str) -> int:
        return self.read_output().count(text)

    def wait_for_lines(self, text: str, number: int = 1) -> None:
        """Wait until a number of output lines contain a text."""
        self.wait_for(lambda: self.count(text) >= number)

    def refresh_processes(self) -> None:
        """Record the processes of the command."""
        driver = psutil.Process(self.process.pid)
        self.processes = [driver, *driver.children(recursive=True)]

    def living_processes(self) -> list[psutil.Process]:
        """Return the recorded processes that have not ended; zombies have."""
        return [process for process in self.processes if _alive(process)]

    def interrupt(self) -> None:
        """Send SIGINT to its process group, as Ctrl-C does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def hang_up(self) -> None:
        """Send SIGHUP to its process group, as a terminal that is closed does."""
        os.killpg(self.process.pid, signal.SIGHUP)

    def terminate_all(self) -> None:
        """Send SIGTERM to all recorded processes, as systemd and batch systems do; `timeout` to the process group."""
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()

    def kill(self) -> None:
        """Kill the command; Ray's processes must end by themselves."""
        self.refresh_processes()
        self.processes = [process for process in self.processes if not has_name(process, *SLOW_TO_END)]
        self.process.kill()
        self.process.wait()
        wait_for(lambda: not self.living_processes(), 60)


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def has_name(process: psutil.Process, *names: str) -> bool:
    """Return whether the name of a process begins with one of these."""
    try:
        return str(process.name()).startswith(names)
    except psutil.NoSuchProcess:
        return False


def kill(process: psutil.Process) -> bool:
    """Kill a process; return whether it existed."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Function that starts a sweep in `tmp_path / "runs"`; commands that still run at the end are killed."""
    commands: list[Command] = []

    def start_sweep(
        file: Path, *options: str, storage: Path | None = None, env: dict[str, str] | None = None, group: str = ""
    ) -> Command:
        arguments = build_sweep_command(file, storage or tmp_path / "runs", *options)
        if group:  # of processes whose memory is limited together
            arguments = ["sh", "-c", f"echo $$ > {shlex.quote(group)} && exec {shlex.join(arguments)}"]
        output = tmp_path / f"output-{len(commands) + 1}"
        with output.open("wb") as file_:
            commands.append(
                Command(
                    subprocess.Popen(
                        arguments,
                        stdout=file_,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        env={**os.environ, **(env or {})},
                    ),
                    output,
                )
            )
        return commands[-1]

    yield start_sweep
    for command in commands:
        if command.running:
            command.refresh_processes()
            for process in reversed(command.processes):
                kill(process)
            command.process.wait()
        print(f"---- {command.output.name}, exit code {command.process.returncode}\n{command.read_output()}")


def wait_until_training(command: Command) -> None:
    """Wait until a trial is in the middle of its epoch, by its log and its processor time since."""
    first_seconds: dict[Path, float] = {}

    def has_trained() -> bool:
        for process in find_trial_processes(command.process.pid) if command.running else []:
            log = find_log_in_training(command, process.pid)
            try:
                seconds = process.cpu_times().user
            except psutil.Error:
                continue
            if log is not None and seconds - first_seconds.setdefault(log, seconds) > TRAINED_SECONDS:
                return True
        return False

    command.wait_for_lines(STARTED)
    command.wait_for(has_trained, between=0.2)


def find_log_in_training(command: Command, pid: int) -> Path | None:
    """Return the log of the trial that a process trains, once its model is about to be loaded; None before and after.

    The modules that it imports before take as much processor time as many steps.
    """
    for log in command.output.parent.glob("runs/*/launch-*/*/log.txt"):
        _, found, attempt = log.read_text().rpartition(f" process {pid} on ")
        if found and "trains on" in attempt and " ends" not in attempt and "diverged" not in attempt:
            return log
    return None


def assert_same(folder: Path, uninterrupted: Path) -> None:
    """Expect the same rows and weights, and for a search the same trials in the same order."""
    assert read_stable_table(folder) == read_stable_table(uninterrupted)
    assert hash_best_weights(folder) == hash_best_weights(uninterrupted)
    assert trials_and_lag(folder) == trials_and_lag(uninterrupted)


def trials_and_lag(folder: Path) -> tuple[list[str], int | None]:
    record: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    return [trial["id"] for trial in record["trials"]], record["lag"]


@pytest.fixture(scope="session")
def long_text(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with enough text for an epoch of some seconds."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_text("\n".join(topics[name] for name in sorted(topics))[:120_000])
    shutil.copy(small_text / "validation.txt", folder)
    os.environ["RAYLM_TESTS_LONG_TEXT"] = str(folder)
    return str(folder)


@pytest.fixture(scope="session")
def grid_file(long_text: str) -> Path:
    """Sweep file of four trials of some seconds."""
    return PROGRAMS / "long_grid.py"


@pytest.fixture(scope="session")
def grid(grid_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """Sweep file of `grid_file` and its results, made without Ray."""
    folder = train_without_ray(load_sweep(grid_file), tmp_path_factory.mktemp("grid"))
    assert [row["status"] for row in read_stable_table(folder).values()] == ["done", "diverged", "done", "done"]
    return grid_file, folder
