"""live.json in a results folder: how the sweep stands while a command runs it, told to other commands."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from dataclasses import dataclass, replace

from raylm.monitor.state import SweepMonitor, SweepState
from raylm.results.storage import Folder, Storage, is_process_alive, process_identity
from raylm.units import format_duration

HEARTBEAT_FILE = "live.json"
HEARTBEAT_SECONDS, BUCKET_HEARTBEAT_SECONDS = 2.0, 10.0
"""Between two times that it is written."""
HEARTBEAT_TIMEOUT_SECONDS = 90.0
"""A command on another machine that has not written for so long is taken for dead."""


class Heartbeat:
    """Writes it, in a thread of its own, for as long as it is entered; it is removed then."""

    def __init__(self, storage: Storage, monitor: SweepMonitor) -> None:
        self._storage, self._monitor = storage.without_retries(), monitor
        self._interval = HEARTBEAT_SECONDS if isinstance(storage, Folder) else BUCKET_HEARTBEAT_SECONDS
        self._owner = json.loads(process_identity())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        """Begins to write."""
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        """Ends it."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # who reads it sees that this process is gone
            self._storage.remove(HEARTBEAT_FILE)

    def _run(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # a full disk, a bucket that is away: the next one may arrive
                self._write()
            if self._stop.wait(self._interval):
                return

    def _write(self) -> None:
        content = {"holder": self._owner, "state": dataclasses.asdict(self._monitor.snapshot())}
        self._storage.write(HEARTBEAT_FILE, json.dumps(content))


@dataclass(frozen=True)
class LastHeartbeat:
    """What a command has told of itself."""

    state: SweepState
    """How the sweep stood then."""
    pid: int
    host: str
    is_alive: bool
    """Whether the command still runs, as far as can be seen from here."""

    @property
    def age_seconds(self) -> float:
        """Since it was told."""
        return max(time.time() - self.state.told, 0.0)

    @property
    def description(self) -> str:
        """Who runs the sweep, or ran it."""
        who, ago = f"process {self.pid} on {self.host}", f"{format_duration(self.age_seconds)} ago"
        if self.is_alive:
            return f"run by {who}, which told this {ago}"
        return f"{who} ran it, and is gone; it was last heard of {ago}. The same command goes on from its checkpoints"


def read_heartbeat(storage: Storage) -> LastHeartbeat | None:
    """What the command says that runs a sweep, or has died while it did; None where there is none."""
    try:
        content = json.loads(storage.read(HEARTBEAT_FILE))
        state, holder = SweepState.from_dict(content["state"]), content["holder"]
        told = LastHeartbeat(state, int(holder["process"]), str(holder["host"]), is_alive=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none, or of another version
    here = is_process_alive(json.dumps(holder))
    return replace(told, is_alive=told.age_seconds < HEARTBEAT_TIMEOUT_SECONDS if here is None else here)
