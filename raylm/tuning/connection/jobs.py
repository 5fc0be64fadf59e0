"""Jobs of `raylm run --address http://...`: a sweep that runs on the head of a cluster."""

from __future__ import annotations

import asyncio
import logging
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raylm.errors import UserError, one_line
from raylm.tuning.connection.head import check_dashboard

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CLIENT_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env")
"""Loggers of Ray's client, which tells its own steps; importing it sets their levels."""
NO_AGENT = "No available agent"
"""Part of the head's answer while the agents of its nodes start, some seconds after its dashboard."""
AGENT_SECONDS = 60.0
"""Time that they may take."""
UNKNOWN_EXIT_CODE = 1
"""Exit code of a job that ended without one."""


def submit_job(address: str, sweep_file: Path, arguments: Sequence[str], write: Callable[[str], None]) -> int:
    """Run a sweep file as a job on the head of a cluster, and show its output until it ends; return its exit code.

    Only the file itself is copied: what it imports or reads must exist on the head.

    Args:
        address: URL of the cluster's dashboard, such as `http://127.0.0.1:8265`.
        sweep_file: sweep file on this machine.
        arguments: arguments of `raylm run` after the file.
        write: shows a text that ends with a line break.

    Raises:
        UserError: if the dashboard does not answer, requires another token, or takes no jobs.
        KeyboardInterrupt: on Ctrl-C; the job continues.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient  # imports a web framework

    check_dashboard(address)
    for name in CLIENT_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(address)
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(sweep_file, folder)
            command = ["python", "-m", "raylm.sweep", sweep_file.name, *arguments]
            job_id = _submit(client, shlex.join(command), folder)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"the cluster at {address} does not take the job: {one_line(error)}") from None
    write(f"job {job_id} at {address}; Ctrl-C leaves it running, `ray job stop --address {address} {job_id}` ends it\n")
    asyncio.run(_stream_logs(client, job_id, write))
    info = client.get_job_info(job_id)
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    write(f"job {job_id}: {info.message or info.status}\n")
    return UNKNOWN_EXIT_CODE


def _submit(client: JobSubmissionClient, command: str, folder: str) -> str:
    """Submit a command with its working folder; return the id of the job.

    Raises:
        RuntimeError: if the head refuses it, or if none of its agents is ready within `AGENT_SECONDS`.
    """
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return str(client.submit_job(entrypoint=command, runtime_env={"working_dir": folder}))
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1)


async def _stream_logs(client: JobSubmissionClient, job_id: str, write: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(job_id):
        write(text)
