"""Early import of what trials need, by the processes that Ray starts with itself and gives to the first trials.

Ray starts a process per core before there is work, and lets each import modules of a list. Here, `worker_start` is that
module: it imports torch, transformers and Tune, which takes seconds, while Ray and Tune still start.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from raylm.config.trial import Resources
from raylm.machine import allowed_cpus
from raylm.tuning import ray_private
from raylm.tuning.connection.worker_start import CLAIMS_VARIABLE

START_MODULE = "raylm.tuning.connection.worker_start"
"""Module that these processes import."""
CLAIM_SECONDS = 5.0
"""Time for the processes to take their claims, which they do as soon as Ray may give them work."""
PACKAGE_FILE = Path(__file__).parents[2] / "__init__.py"


def count_first_trials(resources: Resources, num_trials: int, max_concurrent: int | None) -> int:
    """Return the number of trials that start together on this machine's CPU, or 0 if preparing for them is no use.

    That is so for trials on GPUs, as CUDA would see all GPUs in a process that loads it before Ray has given it one,
    and if trials take less than half the processes, one per core: Ray may give them others than those prepared.

    Args:
        resources: resources of a trial.
        num_trials: trials that are left to run.
    """
    if resources.gpus != 0:
        return 0
    num_processes = allowed_cpus()
    number = min(num_processes // resources.cpus, num_trials, max_concurrent or num_trials)
    return number if 2 * number >= num_processes else 0


@contextlib.contextmanager
def open_claims(num_processes: int) -> Iterator[Path | None]:
    """Yield a folder with a claim for each process that is to import what trials need; None if there are none.

    No other process imports it: each takes seconds of a core and 0.4 GiB.
    """
    if not num_processes or not _finds_this_package():
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="raylm-") as name:
        for number in range(num_processes):
            Path(name, str(number)).touch()
        yield Path(name)


@contextlib.contextmanager
def preload_trial_modules(claims: Path | None) -> Iterator[None]:
    """Let processes of the Ray that starts within this context import what trials need, one for each claim."""
    if claims is None:
        yield
        return
    variables = {CLAIMS_VARIABLE: str(claims), ray_private.PRELOAD_VARIABLE: START_MODULE}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


def wait_for_processes(claims: Path | None) -> None:
    """Wait until the claims are taken, at most `CLAIM_SECONDS`: for trials before that, Ray starts others."""
    deadline = time.monotonic() + CLAIM_SECONDS
    while claims is not None and any(claims.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)


def _finds_this_package() -> bool:
    """Return whether a process that Ray starts imports this raylm, before Ray adds the paths of the driver.

    The first entry of the path is the folder of the script, or the working folder.
    """
    found = PathFinder.find_spec("raylm", sys.path[1:])
    return found is not None and found.origin == str(PACKAGE_FILE)
