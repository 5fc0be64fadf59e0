"""live.json: heartbeat of the command that runs a sweep.

It names the process, which holds the lock of the results folder, and the state of the sweep for other commands.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import psutil

from raylm.results import json_files
from raylm.results.json_files import DamagedFileError
from raylm.results.storage import Folder, Storage

log = logging.getLogger(__name__)

HEARTBEAT_FILE = "live.json"
HEARTBEAT_SECONDS, BUCKET_HEARTBEAT_SECONDS = 2.0, 10.0
"""Interval between heartbeats in a directory, and in a bucket."""
HEARTBEAT_TIMEOUT_SECONDS = 90.0
"""Time without a heartbeat after which a process on another host is considered dead."""


@dataclass(frozen=True)
class ProcessIdentity:
    """Identity of a process among all processes of all hosts."""

    process: int
    """Process id."""
    host: str
    since: float
    """Start of the process, in seconds since 1970: process ids are reused."""

    @classmethod
    def current(cls) -> ProcessIdentity:
        """Return the identity of this process."""
        return cls(os.getpid(), platform.node(), psutil.Process().create_time())

    def is_alive(self) -> bool | None:
        """Return whether the process runs; None if it is on another host."""
        if self.host != platform.node():
            return None
        try:
            return bool(abs(psutil.Process(self.process).create_time() - self.since) < 1)
        except (psutil.NoSuchProcess, ValueError):
            return False

    def __str__(self) -> str:
        """Return a description for messages."""
        return f"process {self.process} on {self.host}"


@dataclass(frozen=True)
class Owner:
    """Part of live.json that identifies the process."""

    holder: ProcessIdentity


def parse_owner(text: str) -> ProcessIdentity | None:
    """Return the process that wrote a heartbeat, or None if the text is damaged."""
    try:
        return json_files.decode(text, Owner).holder
    except DamagedFileError:
        return None


def format_heartbeat(holder: ProcessIdentity, state: Any = None) -> str:
    """Return the text of a heartbeat now; numbers of the state that are not finite become null."""
    return msgspec.json.encode({"holder": holder, "time": time.time(), "state": state}).decode()


class Heartbeat:
    """Context manager that writes live.json periodically in a thread, and removes it at the end.

    It ends this process with SIGTERM if another process has taken over the results folder, which can happen after a
    stall of `HEARTBEAT_TIMEOUT_SECONDS`.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage, self._holder = storage, ProcessIdentity.current()
        self._interval = HEARTBEAT_SECONDS if isinstance(storage, Folder) else BUCKET_HEARTBEAT_SECONDS
        self._get_state: Callable[[], Any] = lambda: None
        self._wake = threading.Event()
        self._is_stopped = self._is_lost = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Heartbeat:
        """Write the first heartbeat and start the thread.

        Raises:
            OSError: if it cannot be written.
        """
        self._storage.write(HEARTBEAT_FILE, format_heartbeat(self._holder))
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop the thread and remove the file."""
        self._is_stopped = True
        self._wake.set()
        self._thread.join()
        if not self._is_lost:
            with contextlib.suppress(OSError):  # readers see that this process is dead
                self._storage.without_retries().remove(HEARTBEAT_FILE)

    def report(self, get_state: Callable[[], Any]) -> None:
        """Include the state that a function returns in every heartbeat from now on; it is called in the thread."""
        self._get_state = get_state
        self._wake.set()

    def _run(self) -> None:
        storage = self._storage.without_retries()
        while True:
            self._wake.wait(self._interval)
            self._wake.clear()
            if self._is_stopped:
                return
            with contextlib.suppress(OSError):  # full disk or unreachable bucket: the next heartbeat may succeed
                self._beat(storage)
            if self._is_lost:
                log.error("another process has taken over %s after a long stall of this one", storage.uri)
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _beat(self, storage: Storage) -> None:
        """Write a heartbeat, unless the file has the heartbeat of another process."""
        with contextlib.suppress(FileNotFoundError, ValueError):  # missing, or not UTF-8
            self._is_lost = parse_owner(storage.read(HEARTBEAT_FILE)) not in (self._holder, None)
        if not self._is_lost:
            storage.write(HEARTBEAT_FILE, format_heartbeat(self._holder, self._get_state()))
