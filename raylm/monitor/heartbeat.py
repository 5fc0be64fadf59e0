"""live.json in a results folder: how the sweep stands while a command runs it, told to other commands."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from dataclasses import dataclass, replace

from raylm.errors import duration
from raylm.monitor.state import State, Watch
from raylm.results.storage import Folder, Storage, is_alive_here, this_process

NAME = "live.json"
SECONDS, SECONDS_IN_A_BUCKET = 2.0, 10.0
"""Between two times that it is written."""
SILENT_SECONDS = 90.0
"""A command on another machine that has not written for so long is taken for dead."""


class Pulse:
    """Writes it, in a thread of its own, for as long as it is entered; it is removed then."""

    def __init__(self, folder: Storage, watch: Watch) -> None:
        self._folder, self._watch = folder.hasty(), watch
        self._seconds = SECONDS if isinstance(folder, Folder) else SECONDS_IN_A_BUCKET
        self._holder = json.loads(this_process())
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        """Begins to write."""
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        """Ends it."""
        self._left.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # who reads it sees that this process is gone
            self._folder.remove(NAME)

    def _beat(self) -> None:
        while True:
            with contextlib.suppress(OSError):  # a full disk, a bucket that is away: the next one may arrive
                self._write()
            if self._left.wait(self._seconds):
                return

    def _write(self) -> None:
        content = {"holder": self._holder, "state": dataclasses.asdict(self._watch.state())}
        self._folder.write(NAME, json.dumps(content))


@dataclass(frozen=True)
class Told:
    """What a command has told of itself."""

    state: State
    """How the sweep stood then."""
    process: int
    host: str
    alive: bool
    """Whether the command still runs, as far as can be seen from here."""

    @property
    def seconds_ago(self) -> float:
        """Since it was told."""
        return max(time.time() - self.state.told, 0.0)

    @property
    def words(self) -> str:
        """Who runs the sweep, or ran it."""
        who, ago = f"process {self.process} on {self.host}", f"{duration(self.seconds_ago)} ago"
        if self.alive:
            return f"run by {who}, which told this {ago}"
        return f"{who} ran it, and is gone; it was last heard of {ago}. The same command goes on from its checkpoints"


def read(folder: Storage) -> Told | None:
    """What the command says that runs a sweep, or has died while it did; None where there is none."""
    try:
        content = json.loads(folder.read(NAME))
        state, holder = State.from_dict(content["state"]), content["holder"]
        told = Told(state, int(holder["process"]), str(holder["host"]), alive=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # none, or of another version
    here = is_alive_here(json.dumps(holder))
    return replace(told, alive=told.seconds_ago < SILENT_SECONDS if here is None else here)
