"""A Google Cloud Storage of the tests' own on this machine."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from oracle import find_free_port, is_port_open, wait_for

BUCKET = "tests"
SERVER_PROGRAM = """
import sys, threading
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket=sys.argv[2]).start()
threading.Event().wait()
"""


@contextlib.contextmanager
def serve_gcs(log_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that uses it, while it runs."""
    port = find_free_port()
    command = [sys.executable, "-c", SERVER_PROGRAM, str(port), BUCKET]
    with log_path.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            wait_for(lambda: is_port_open("127.0.0.1", port))
            yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
        finally:
            process.kill()
