"""Standard output and standard error as people have them: any encoding, closed, full, a pipe whose reader has left."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, NoReturn, TextIO, cast

from rich.console import Console as RichConsole


def prepare_streams() -> None:
    """Make standard output and standard error take any text: what their encoding lacks is written as an escape.

    A stream that was closed before the start is replaced by one that discards everything.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 (for the whole process)
        elif hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def discard_output(stream: TextIO) -> None:
    """Let a stream discard what is written from now on, also at the end of the process."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a file, as in tests and notebooks
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


class LossyStream:
    """Text stream that discards what cannot be written: a screen that fails must not end the work behind it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._has_failed = stream, False

    def write(self, text: str) -> int:
        """Write a text, unless a write has failed before; return its length."""
        if not self._has_failed:
            self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, unless a write has failed before."""
        if not self._has_failed:
            self._try(self._stream.flush)

    def _try(self, action: Any) -> None:
        try:
            action()
        except (OSError, ValueError):  # closed, full, gone; ValueError: closed in this process
            self._has_failed = True
            discard_output(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class PipeConsole(RichConsole):
    """Console of a command whose output may be read in part, as by `| head`: it ends in silence then."""

    def on_broken_pipe(self) -> NoReturn:
        """End the command: nobody reads on. The exit code is 0, as nothing has failed."""
        self.quiet = True
        discard_output(sys.stdout)
        raise SystemExit(0)


def open_console(*, keeps_working: bool, stderr: bool = False) -> RichConsole:
    """Return rich's console on standard output or standard error.

    Args:
        keeps_working: discard what cannot be written, instead of ending the command.
        stderr: write to standard error.
    """
    prepare_streams()
    stream = sys.stderr if stderr else sys.stdout
    if keeps_working:
        return RichConsole(file=cast(TextIO, LossyStream(stream)), highlight=False, soft_wrap=True)
    return PipeConsole(stderr=stderr, highlight=False, soft_wrap=True)
