"""Google Cloud Storage emulator on this machine."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from oracle import find_free_port, is_port_open, wait_for

BUCKET = "tests"
SERVER = Path(__file__).parent / "programs" / "gcs_server.py"


@contextlib.contextmanager
def serve_gcs(log_path: Path) -> Iterator[dict[str, str]]:
    """Serve one bucket until the context exits; yield the environment variables of its users."""
    port = find_free_port()
    command = [sys.executable, str(SERVER), str(port), BUCKET]
    with log_path.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            wait_for(lambda: is_port_open("127.0.0.1", port))
            yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}
        finally:
            process.kill()
