"""What Ray prints of itself in the command's own process, kept from between the lines of raylm."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
from typing import TextIO

RAYLETS_THREAD = "ray_listen_error_messages"
"""Of the command's own process; it prints what raylets say (ray/_private/worker.py)."""


def raylets() -> contextlib.AbstractContextManager[object]:
    """Nothing of raylets on standard output, while it is entered."""
    return contextlib.redirect_stdout(_WithoutRaylets(sys.stdout))


def everything() -> contextlib.AbstractContextManager[object]:
    """Nothing on standard output, while it is entered."""
    return contextlib.redirect_stdout(io.StringIO())


class _WithoutRaylets(io.TextIOBase):
    """Standard output without what a thread of Ray's prints there, whatever is asked of it, when a process has died.

    What raylm says of it in a line is enough; Ray's own logs have the rest.
    """

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def write(self, text: str) -> int:
        """Writes what others print."""
        return len(text) if threading.current_thread().name == RAYLETS_THREAD else self._output.write(text)

    def flush(self) -> None:
        """See `io.IOBase`."""
        self._output.flush()

    def isatty(self) -> bool:
        """See `io.IOBase`."""
        return self._output.isatty()

    def fileno(self) -> int:
        """See `io.IOBase`."""
        return self._output.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of what is written."""
        return self._output.encoding
