"""Results of sweeps to compare, and processes and ports to watch while sweeps run."""

from __future__ import annotations

import contextlib
import csv
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from raylm.config.trial import TrialConfig
from raylm.results.folder import list_launches, open_latest_checkpoint
from raylm.results.manifest import verify
from raylm.results.storage import Folder


def read_stable_table(folder: Path) -> dict[str, dict[str, str]]:
    """Return the rows of results.csv by run name, without the columns that depend on time and launch."""
    with (folder / "results.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    timely = ("training_seconds", "estimated_seconds", "checkpoint")
    return {run: {k: v for k, v in row.items() if k not in timely} for run, row in rows.items()}


def hash_best_weights(folder: Path) -> dict[str, str]:
    """Return the sha256 of each run's best weights, after verifying the checkpoint."""
    with (folder / "results.csv").open() as file:
        checkpoints = {row["run"]: folder / row["checkpoint"] for row in csv.DictReader(file) if row["checkpoint"]}
    found = {run: verify(checkpoint) for run, checkpoint in checkpoints.items()}
    return {run: content.files["model.safetensors"].sha256 for run, content in found.items() if content}


def find_newest_checkpoint(folder: Path, trial: TrialConfig) -> Path | None:
    """Return the checkpoint in a results folder that a trial would resume from."""
    with open_latest_checkpoint(Folder(folder), trial, list_launches(Folder(folder))) as checkpoint:
        return checkpoint


@contextlib.contextmanager
def start_process(
    command: Sequence[str], log_path: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command with its output in a file; kill it at the end if it still runs."""
    with log_path.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], object], timeout: float = 120, poll_seconds: float = 0.02) -> None:
    """Wait until a condition holds; fail after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not come to this in time"
        time.sleep(poll_seconds)


def find_free_port(host: str = "127.0.0.1") -> int:
    """Return a port on which nothing listens at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
    return port


def is_port_open(host: str, port: int) -> bool:
    """Return whether something listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def find_trial_processes(driver_pid: int) -> list[psutil.Process]:
    """Return the descendants of a process that train a trial at the moment."""
    found = []
    for process in psutil.Process(driver_pid).children(recursive=True):
        try:
            found += [process] if "ImplicitFunc.train" in "".join(process.cmdline()) else []
        except psutil.Error:
            continue  # it ended while it was looked at
    return found
