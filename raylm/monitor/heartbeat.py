"""live.json in a results folder: the state of a running sweep, for other commands."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass

import msgspec

from raylm.monitor.state import SweepMonitor, SweepState
from raylm.results import json_files
from raylm.results.storage import Folder, Storage, is_process_alive, process_identity
from raylm.units import format_duration

HEARTBEAT_FILE = "live.json"
HEARTBEAT_SECONDS, BUCKET_HEARTBEAT_SECONDS = 2.0, 10.0
"""Interval between heartbeats in a folder, and in a bucket."""
HEARTBEAT_TIMEOUT_SECONDS = 90.0
"""Age of a heartbeat after which a process on another host is considered dead."""


class HeartbeatOwner(msgspec.Struct, frozen=True):
    """Process that runs the sweep."""

    process: int
    host: str
    since: float
    """Start of the process, in seconds since 1970."""


class HeartbeatRecord(msgspec.Struct, frozen=True):
    """Content of live.json."""

    holder: HeartbeatOwner
    state: SweepState


class Heartbeat:
    """Context manager that writes live.json periodically, in a thread of its own, and removes it at the end."""

    def __init__(self, storage: Storage, monitor: SweepMonitor) -> None:
        self._storage, self._monitor = storage.without_retries(), monitor
        self._interval = HEARTBEAT_SECONDS if isinstance(storage, Folder) else BUCKET_HEARTBEAT_SECONDS
        self._owner = msgspec.json.decode(process_identity(), type=HeartbeatOwner)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        """Start the thread."""
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        """Stop the thread and remove the file."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # a reader sees that this process is dead
            self._storage.remove(HEARTBEAT_FILE)

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # a full disk or an unreachable bucket: the next write may succeed
                self._write()
            if self._stop.wait(self._interval):
                return

    def _write(self) -> None:
        record = HeartbeatRecord(self._owner, self._monitor.snapshot())
        self._storage.write(HEARTBEAT_FILE, msgspec.json.encode(record).decode())


@dataclass(frozen=True)
class LastHeartbeat:
    """Latest heartbeat of a command."""

    state: SweepState
    pid: int
    host: str
    is_alive: bool
    """False if the process is dead. On another host, it is alive if its heartbeat is recent."""

    @property
    def age_seconds(self) -> float:
        """Time since the heartbeat was written."""
        return max(time.time() - self.state.updated_at, 0.0)

    @property
    def description(self) -> str:
        """Process that runs the sweep, or the dead process that ran it and how to resume."""
        process, age = f"process {self.pid} on {self.host}", format_duration(self.age_seconds)
        if self.is_alive:
            return f"run by {process} (last heartbeat {age} ago)"
        return f"last run by {process}, which died (last heartbeat {age} ago). Run the same command to resume."


def read_heartbeat(storage: Storage) -> LastHeartbeat | None:
    """Return the latest heartbeat of a running or dead command; None if there is none, or it cannot be decoded."""
    record = json_files.load_or_none(storage, HEARTBEAT_FILE, HeartbeatRecord)
    if record is None:
        return None
    owner, state = record.holder, record.state
    is_alive = is_process_alive(json.dumps(msgspec.to_builtins(owner)))
    if is_alive is None:  # on another host
        is_alive = time.time() - state.updated_at < HEARTBEAT_TIMEOUT_SECONDS
    return LastHeartbeat(state, owner.process, owner.host, is_alive)
