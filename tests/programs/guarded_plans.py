"""Plans sweep files; ends with code 97 at once if it asks the network, starts a process or imports torch."""

from __future__ import annotations

import os
import sys
from typing import Any

FORBIDDEN = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess.Popen", "os.fork", "os.posix_spawn"}


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """End the process at a forbidden event."""
    if event in FORBIDDEN or (event == "import" and arguments[0] in ("torch", "transformers", "datasets")):
        os.write(2, f"{event} {arguments!r:.200}\n".encode())
        os._exit(97)


sys.addaudithook(guard)
from raylm.cli.app import app  # noqa: E402  (under guard)

for file in sys.argv[1:]:
    print(f"== {file}", flush=True)
    app(["plan", file], prog_name="raylm", standalone_mode=False)
