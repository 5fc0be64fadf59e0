"""A Ray cluster of the tests' own on this machine, and sweeps that run on it from this process."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from ray.cluster_utils import Cluster
from s3 import set_environment

from raylm import run
from raylm.config.sweep import Sweep
from raylm.tuning import nodes, tuner

PROGRAMS = Path(__file__).parent / "programs"
"""Folder of the programs that tests start, and of the modules that trials import in tests."""
GPU_NAME = "H100"
"""Type of the GPUs that Ray is told of. There are none: tests train on the CPU."""


@contextlib.contextmanager
def start_cluster(**head_resources: Any) -> Iterator[Cluster]:
    """Start Ray for as long as the context is entered; other commands on this machine do not find it.

    Args:
        head_resources: arguments of the head node, as `num_cpus=2`.
    """
    folder = tempfile.mkdtemp(prefix="raylm", dir="/tmp")  # short enough for Ray's sockets
    paths = os.pathsep.join(filter(None, [str(PROGRAMS), os.environ.get("PYTHONPATH", "")]))
    try:
        with set_environment({"RAY_TMPDIR": folder, "PYTHONPATH": paths}):
            cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **head_resources})
        try:
            yield cluster
        finally:
            cluster.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def resolve_device(resources: object) -> str:
    """Return the device that trials of tests compute on."""
    return "cpu"


@dataclass(frozen=True)
class FinishedRun:
    """A sweep that has run."""

    exit_code: int
    folder: Path
    """The results folder."""
    output: str
    """Standard output and standard error."""


def run_on_cluster(sweep: Sweep, storage: Path, address: str, **options: Any) -> FinishedRun:
    """Run a sweep from this process on a cluster. Trials compute on the CPU, whatever Ray gives them.

    Args:
        storage: parent of the results folder.
        options: `retry_failed`, `max_concurrent` and `trackers`, as `raylm.run` takes them.
    """
    output = io.StringIO()
    with (
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        mock.patch.object(tuner, "resolve_device", resolve_device),
        mock.patch.object(nodes, "resolve_gpus", lambda requested, *arguments, **options: requested),
    ):
        result = run(sweep, storage=str(storage), address=address, **options)
    return FinishedRun(result.exit_code, storage / sweep.name, output.getvalue())
