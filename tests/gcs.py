"""A Google Cloud Storage of the tests' own on this machine."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from oracle import answers, free_port, wait_for

BUCKET = "tests"
SERVE = """
import sys, threading
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).start()
threading.Event().wait()
"""


@contextlib.contextmanager
def served_gcs(log: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that uses it, while it runs."""
    port = free_port()
    command = [sys.executable, "-c", SERVE, str(port), BUCKET]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            wait_for(lambda: answers("127.0.0.1", port))
            yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
        finally:
            process.kill()
