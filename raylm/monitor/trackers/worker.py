"""One experiment tracker in a process of its own: told of trials by JSON lines, so that whatever it does stays there.

    python -m raylm.monitor.trackers.worker wandb < events

The first line says where and how to track, each other one what happened to a trial; what the user is to know goes to
standard output, a line each. `tracking` starts these processes and writes the lines.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from raylm.monitor.trackers.clients import MLflow, Say, TensorBoard, Tracker, Trackio, in_a_line
from raylm.monitor.trackers.wandb_client import Wandb

TRACKERS: Mapping[str, Callable[[Mapping[str, Any], Say], Tracker]] = {
    "wandb": Wandb,
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "trackio": Trackio,
}
NICENESS = 19
"""The processors are the trials' first; Ray's workers have 15."""
SECONDS_BETWEEN_TRIES = 30.0
"""A tracker that gave an error is left alone for so long."""
HASTE_SECONDS = 0.5
"""In the end, a tracker that has just given an error has no longer than this."""
MOST_WAITING = 100_000
"""Lines that are read ahead, so that the end of the command is noticed while a client hangs."""


class Told:
    """Hands events to a tracker. One that raises is left alone for a while; what comes meanwhile is lost to it."""

    def __init__(self, tracker: Tracker, say: Say) -> None:
        self._tracker, self._say = tracker, say
        self._begun: dict[str, Mapping[str, Any]] = {}
        self._handles: dict[str, Any] = {}
        self._resting_until = 0.0
        self._has_failed = False
        self.failing = False
        """Whether the tracker gave an error when it was last told something."""
        self.lost = 0
        """Events that the tracker did not take."""

    def all(self, lines: Iterable[str]) -> None:
        """Takes events until there are no more, then ends what is still open."""
        for line in lines:
            self._hand_on(json.loads(line))
        for run in list(self._handles):
            self._hand_on({"event": "end", "run": run, "status": "interrupted", "reason": ""})

    def _hand_on(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "begin":  # the tracker hears of it with the trial's first numbers
            self._begun[event["run"]] = event
            return
        if time.monotonic() < self._resting_until:
            self.lost += 1
            return
        try:
            self._take(event)
            self.failing = False
        except Exception as error:  # of whatever class the client has
            self.lost += 1
            self.failing = True
            self._resting_until = time.monotonic() + SECONDS_BETWEEN_TRIES
            if not self._has_failed:
                self._has_failed = True
                again = f"tried again every {SECONDS_BETWEEN_TRIES:.0f} s"
                self._say(f"{in_a_line(error)}; the sweep goes on without it, {again}")

    def _take(self, event: Mapping[str, Any]) -> None:
        run = event["run"]
        if run not in self._handles:
            self._handles[run] = self._tracker.begin(self._begun[run])
        handle = self._handles[run]
        if values := event.get("values"):
            self._tracker.log(handle, event["step"], event["tokens"], values)
        if best := event.get("best"):
            self._tracker.best(handle, event["step"], best)
        if event["event"] == "end":
            del self._handles[run]
            self._tracker.end(handle, event["status"], event["reason"])


def main() -> None:
    """Tracks what standard input tells; when that ends, what is on its way has some seconds to arrive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command says when it is over
    os.nice(NICENESS)
    words = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what clients print is no word of ours

    def say(text: str) -> None:
        print(text, file=words, flush=True)

    setup = json.loads(sys.stdin.readline())
    gc.disable()  # imports leave no garbage, and looking for it is a sixth of their time
    tracker = TRACKERS[sys.argv[1]](setup, say)
    gc.enable()
    told = Told(tracker, say)

    def leave(exit_code: int) -> None:
        if told.lost:
            say(f"{told.lost:,} events were not tracked")
        os._exit(exit_code)  # no exit handler of a client is waited for

    def leave_in_time() -> None:
        time.sleep(HASTE_SECONDS if told.failing else setup["grace_seconds"])
        leave(1)

    told.all(_lines(leave_in_time))
    try:
        tracker.close()
    except Exception as error:  # of whatever class the client has
        say(f"{in_a_line(error)}; the last of it may be lost")
        leave(1)
    leave(0)


def _lines(on_end: Callable[[], None]) -> Iterator[str]:
    """The lines of standard input, whose end is noticed at once, also where the command has died and a client hangs."""
    lines: queue.Queue[str | None] = queue.Queue(MOST_WAITING)

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)
        on_end()

    threading.Thread(target=read, daemon=True).start()
    while (line := lines.get()) is not None:
        yield line


if __name__ == "__main__":
    main()
