"""Latest heartbeat of the command that runs a sweep, as other commands see it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import msgspec

from raylm.monitor.state import SweepState
from raylm.results import json_files
from raylm.results.heartbeat import HEARTBEAT_FILE, HEARTBEAT_TIMEOUT_SECONDS, ProcessIdentity
from raylm.results.storage import Storage
from raylm.units import format_duration


class HeartbeatRecord(msgspec.Struct, frozen=True):
    """Content of live.json."""

    holder: ProcessIdentity
    time: float | None = None
    """Time of the heartbeat, in seconds since 1970; raylm 0.1 wrote the time of the state only."""
    state: SweepState | None = None
    """None before the first trial starts."""


@dataclass(frozen=True)
class LastHeartbeat:
    """Latest heartbeat of a command."""

    pid: int
    host: str
    written_at: float
    """Time of the heartbeat, in seconds since 1970."""
    state: SweepState | None
    """State of the sweep; None before the first trial starts."""
    is_alive: bool
    """False if the process is dead. On another host, it is alive if its heartbeat is recent."""

    @property
    def age_seconds(self) -> float:
        """Time since the heartbeat was written."""
        return max(time.time() - self.written_at, 0.0)

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
    written_at = record.time or (record.state.updated_at if record.state else 0.0)
    process, is_alive = record.holder, record.holder.is_alive()
    if is_alive is None:  # on another host
        is_alive = time.time() - written_at < HEARTBEAT_TIMEOUT_SECONDS
    return LastHeartbeat(process.process, process.host, written_at, record.state, is_alive)
