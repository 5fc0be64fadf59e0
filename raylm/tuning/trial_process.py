"""A machine's memory and a process's part of it: a trial that eats it all ends itself, before others pay for it."""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import sys
import threading
from collections.abc import Callable, Iterator

import psutil

from raylm.errors import printable
from raylm.planning.devices import machine_memory
from raylm.results.storage import Storage
from raylm.training.device import trim_heap

SECONDS_BETWEEN_LOOKS = 0.1
TELL_ABOVE = 0.80
"""Share of the machine's memory in use above which a process that takes more than its part tells of it."""
END_ABOVE = 0.92
"""And above which it ends itself: Ray ends a process at 0.95, and with it the whole of Tune."""
GROWN = 0.25
"""Share of a process's part that it may hold more after a trial than after its first one; then a fresh one follows."""


GIB = 2**30


class Guard(threading.Thread):
    """Watches the memory of its process and its machine.

    Where the machine's memory is short and this process takes more than its part of it, it says so through `tell`, and
    a little later ends the process: its trial alone has failed then, and is known to have.
    """

    def __init__(self, part: float, tell: Callable[[str], None]) -> None:
        """A guard to be started.

        Args:
            part: this process's part of the machine, 0 to 1.
            tell: told in words how much is taken, once and soon after being started.
        """
        super().__init__(daemon=True)
        self._part, self._tell = part, tell
        self._told = False
        self._finished = threading.Event()

    def stop(self) -> None:
        """Ends the watch."""
        self._finished.set()

    def run(self) -> None:
        """Watches until it is stopped."""
        process = psutil.Process()
        while not self._finished.wait(SECONDS_BETWEEN_LOOKS):
            used, total = machine_memory()
            if used < TELL_ABOVE * total:
                continue
            own = process.memory_info().rss
            if own < self._part * total:
                continue
            if not self._told:
                self._tell(f"out of memory: it took {own / GIB:.1f} GiB of {total / GIB:.1f}")
                self._told = True
            if used > END_ABOVE * total:
                os._exit(1)


class Footprint:
    """What a process holds between two trials: a worker that runs many keeps what one of them has leaked."""

    def __init__(self) -> None:
        self._first: int | None = None
        self.grown_bytes = 0
        """At the last look, more than at the first."""

    def look(self, device_bytes: int = 0) -> None:
        """Frees what can be freed, and looks.

        Args:
            device_bytes: held on a GPU besides.
        """
        gc.collect()
        trim_heap()  # what was freed is no leak
        now = psutil.Process().memory_info().rss + device_bytes
        self._first = now if self._first is None else min(now, self._first)
        self.grown_bytes = now - self._first


def name_of(rank: int) -> str:
    """The name of a rank's file in the trial's folder."""
    return f"log-{rank}.txt" if rank else "log.txt"


@contextlib.contextmanager
def kept(folder: Storage, name: str) -> Iterator[None]:
    """Has all that this process prints go into a file, whoever prints it: Python, a library in C, a child process.

    Where the file cannot be opened it is printed as before: no log is worth a trial.
    """
    with contextlib.ExitStack() as leaving:
        try:
            file = leaving.enter_context(folder.appended(name))
        except OSError:
            yield
            return
        print(f"raylm: what follows here is in {folder.where(name)}")
        _flush()
        before = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in before:
                os.dup2(file, number)
            yield
        finally:
            _flush()
            for number, descriptor in before:
                os.dup2(descriptor, number)
                os.close(descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk
            stream.flush()


def say(text: str) -> None:
    """A line of raylm's own, with the time in UTC."""
    now = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    with contextlib.suppress(OSError):
        print(f"[{now}] {printable(text)}", flush=True)
