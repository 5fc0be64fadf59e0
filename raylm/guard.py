"""A machine's memory and a process's part of it: a trial that eats it all ends itself, before others pay for it."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from raylm import memory

SECONDS_BETWEEN_LOOKS = 0.1
TELL_ABOVE = 0.80
"""Share of the machine's memory in use above which a process that takes more than its part tells of it."""
END_ABOVE = 0.92
"""And above which it ends itself: Ray ends a process at 0.95, and with it the whole of Tune."""
GROWN = 0.25
"""Share of a process's part that it may hold more after a trial than after its first one; then a fresh one follows."""
CGROUPS = Path("/sys/fs/cgroup")
GIB = 2**30


def machine_memory() -> tuple[int, int]:
    """Bytes in use and in all, of the machine or of the container (control group) that this process is held in."""
    machine = psutil.virtual_memory()
    for folder, limit_file, use_file in _control_groups():
        try:
            limit = int((folder / limit_file).read_text())
            if limit < machine.total:
                return int((folder / use_file).read_text()) - _cached(folder), limit
        except (OSError, ValueError):  # not there, or `max`
            continue
    return machine.total - machine.available, machine.total


def _control_groups() -> list[tuple[Path, str, str]]:
    """Folders of this process's control group, with the names of the files of its limit and use: version 2, then 1."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    v2 = [path for _, controllers, path in lines if not controllers]
    v1 = [path for _, controllers, path in lines if "memory" in controllers.split(",")]
    own = [(CGROUPS / path.lstrip("/"), "memory.max", "memory.current") for path in v2]
    own += [(CGROUPS / "memory" / path.lstrip("/"), "memory.limit_in_bytes", "memory.usage_in_bytes") for path in v1]
    # within a container the path is often that of its host; its own group is the root then
    roots = [(CGROUPS, "memory.max", "memory.current")]
    return [*own, *roots, (CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")]


def _cached(folder: Path) -> int:
    """Bytes of files that the kernel gives back when they are needed."""
    lines = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    found = {name: int(value) for name, value in lines}
    return found.get("total_inactive_file", found.get("inactive_file", 0))


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
        memory.trim_heap()  # what was freed is no leak
        now = psutil.Process().memory_info().rss + device_bytes
        self._first = now if self._first is None else min(now, self._first)
        self.grown_bytes = now - self._first
