"""A sweep given to a cluster from elsewhere: as a job on its head, which goes on when this command is closed."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from raylm.errors import UserError, one_line

UNKNOWN_EXIT_CODE = 1


def submit_job(address: str, sweep_file: Path, arguments: Sequence[str], write: Callable[[str], None]) -> int:
    """Runs a sweep file on a cluster and shows what it says there; gives its exit code.

    The file alone goes there: what it imports or reads besides must be on the head.

    Args:
        address: of the cluster's dashboard, `http://127.0.0.1:8265`.
        file: the sweep file, on this machine.
        arguments: of `raylm run`, after the file.
        say: shows a text that ends in its own line break.

    Raises:
        UserError: if the cluster cannot be reached.
        KeyboardInterrupt: on Ctrl-C; the job goes on.
    """
    try:
        client = JobSubmissionClient(address)
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(sweep_file, folder)
            command = ["python", "-m", "raylm.sweep", sweep_file.name, *arguments]
            job = client.submit_job(entrypoint=shlex.join(command), runtime_env={"working_dir": folder})
    except (ConnectionError, RuntimeError) as error:
        raise UserError(
            f"no cluster takes jobs at {address}: {one_line(error)}; "
            "`ray dashboard cluster.yaml` opens the way to one, and RAY_AUTH_MODE=token has its token shown"
        ) from None
    write(f"job {job} at {address}; Ctrl-C leaves it running, `ray job stop --address {address} {job}` ends it\n")
    asyncio.run(_stream_logs(client, job, write))
    info = client.get_job_info(job)
    if info.driver_exit_code is not None:
        return int(info.driver_exit_code)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    write(f"job {job}: {info.message or info.status}\n")
    return UNKNOWN_EXIT_CODE


async def _stream_logs(client: JobSubmissionClient, job_id: str, write: Callable[[str], None]) -> None:
    async for text in client.tail_job_logs(job_id):
        write(text)
