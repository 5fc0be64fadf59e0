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

from raylm.errors import escape_control_chars
from raylm.planning.devices import machine_memory
from raylm.results.storage import Storage
from raylm.training.device import trim_heap
from raylm.units import GIB

POLL_SECONDS = 0.1
WARN_FRACTION = 0.80
"""Share of the machine's memory in use above which a process that takes more than its part tells of it."""
KILL_FRACTION = 0.92
"""And above which it ends itself: Ray ends a process at 0.95, and with it the whole of Tune."""
MAX_LEAK_FRACTION = 0.25
"""Share of a process's part that it may hold more after a trial than after its first one; then a fresh one follows."""


class MemoryWatchdog(threading.Thread):
    """Watches the memory of its process and its machine.

    Where the machine's memory is short and this process takes more than its part of it, it says so through `tell`, and
    a little later ends the process: its trial alone has failed then, and is known to have.
    """

    def __init__(self, memory_fraction: float, on_low_memory: Callable[[str], None]) -> None:
        """A guard to be started.

        Args:
            part: this process's part of the machine, 0 to 1.
            tell: told in words how much is taken, once and soon after being started.
        """
        super().__init__(daemon=True)
        self._memory_fraction, self._on_low_memory = memory_fraction, on_low_memory
        self._warned = False
        self._stop_event = threading.Event()

    def stop(self) -> None:
        """Ends the watch."""
        self._stop_event.set()

    def run(self) -> None:
        """Watches until it is stopped."""
        process = psutil.Process()
        while not self._stop_event.wait(POLL_SECONDS):
            used, total = machine_memory()
            if used < WARN_FRACTION * total:
                continue
            own = process.memory_info().rss
            if own < self._memory_fraction * total:
                continue
            if not self._warned:
                self._on_low_memory(f"out of memory: it took {own / GIB:.1f} GiB of {total / GIB:.1f}")
                self._warned = True
            if used > KILL_FRACTION * total:
                os._exit(1)


class LeakCheck:
    """What a process holds between two trials: a worker that runs many keeps what one of them has leaked."""

    def __init__(self) -> None:
        self._baseline_bytes: int | None = None
        self.leaked_bytes = 0
        """At the last look, more than at the first."""

    def measure(self, device_bytes: int = 0) -> None:
        """Frees what can be freed, and looks.

        Args:
            device_bytes: held on a GPU besides.
        """
        gc.collect()
        trim_heap()  # what was freed is no leak
        now = psutil.Process().memory_info().rss + device_bytes
        self._baseline_bytes = now if self._baseline_bytes is None else min(now, self._baseline_bytes)
        self.leaked_bytes = now - self._baseline_bytes


def log_file_name(rank: int) -> str:
    """The name of a rank's file in the trial's folder."""
    return f"log-{rank}.txt" if rank else "log.txt"


@contextlib.contextmanager
def capture_output(storage: Storage, name: str) -> Iterator[None]:
    """Has all that this process prints go into a file, whoever prints it: Python, a library in C, a child process.

    Where the file cannot be opened it is printed as before: no log is worth a trial.
    """
    with contextlib.ExitStack() as leaving:
        try:
            file = leaving.enter_context(storage.open_append(name))
        except OSError:
            yield
            return
        print(f"raylm: what follows here is in {storage.uri_of(name)}")
        _flush_streams()
        before = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in before:
                os.dup2(file, number)
            yield
        finally:
            _flush_streams()
            for number, descriptor in before:
                os.dup2(descriptor, number)
                os.close(descriptor)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk
            stream.flush()


def print_timestamped(text: str) -> None:
    """A line of raylm's own, with the time in UTC."""
    now = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    with contextlib.suppress(OSError):
        print(f"[{now}] {escape_control_chars(text)}", flush=True)
