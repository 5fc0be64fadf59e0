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

from raylm.monitor.trackers.clients import (
    MLflowTracker,
    Notify,
    TensorBoardTracker,
    Tracker,
    TrackioTracker,
    format_root_cause,
)
from raylm.monitor.trackers.wandb_client import WandbTracker

TRACKER_CLASSES: Mapping[str, Callable[[Mapping[str, Any], Notify], Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
    "mlflow": MLflowTracker,
    "trackio": TrackioTracker,
}
NICENESS = 19
"""The processors are the trials' first; Ray's workers have 15."""
RETRY_SECONDS = 30.0
"""A tracker that gave an error is left alone for so long."""
FAILED_GRACE_SECONDS = 0.5
"""In the end, a tracker that has just given an error has no longer than this."""
MAX_QUEUED_LINES = 100_000
"""Lines that are read ahead, so that the end of the command is noticed while a client hangs."""


class Dispatcher:
    """Hands events to a tracker. One that raises is left alone for a while; what comes meanwhile is lost to it."""

    def __init__(self, tracker: Tracker, notify: Notify) -> None:
        self._tracker, self._notify = tracker, notify
        self._trials: dict[str, Mapping[str, Any]] = {}
        self._handles: dict[str, Any] = {}
        self._retry_after = 0.0
        self._has_reported_error = False
        self.is_failing = False
        """Whether the tracker gave an error when it was last told something."""
        self.num_dropped = 0
        """Events that the tracker did not take."""

    def run(self, lines: Iterable[str]) -> None:
        """Takes events until there are no more, then ends what is still open."""
        for line in lines:
            self._dispatch(json.loads(line))
        for run in list(self._handles):
            self._dispatch({"event": "end", "run": run, "status": "interrupted", "reason": ""})

    def _dispatch(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "begin":  # the tracker hears of it with the trial's first numbers
            self._trials[event["run"]] = event
            return
        if time.monotonic() < self._retry_after:
            self.num_dropped += 1
            return
        try:
            self._apply(event)
            self.is_failing = False
        except Exception as error:  # of whatever class the client has
            self.num_dropped += 1
            self.is_failing = True
            self._retry_after = time.monotonic() + RETRY_SECONDS
            if not self._has_reported_error:
                self._has_reported_error = True
                again = f"tried again every {RETRY_SECONDS:.0f} s"
                self._notify(f"{format_root_cause(error)}; the sweep goes on without it, {again}")

    def _apply(self, event: Mapping[str, Any]) -> None:
        run = event["run"]
        if run not in self._handles:
            self._handles[run] = self._tracker.start_trial(self._trials[run])
        handle = self._handles[run]
        if values := event.get("values"):
            self._tracker.log_metrics(handle, event["step"], event["tokens"], values)
        if best := event.get("best"):
            self._tracker.log_best(handle, event["step"], best)
        if event["event"] == "end":
            del self._handles[run]
            self._tracker.end_trial(handle, event["status"], event["reason"])


def main() -> None:
    """Tracks what standard input tells; when that ends, what is on its way has some seconds to arrive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command says when it is over
    os.nice(NICENESS)
    words = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what clients print is no word of ours

    def notify(text: str) -> None:
        print(text, file=words, flush=True)

    setup = json.loads(sys.stdin.readline())
    gc.disable()  # imports leave no garbage, and looking for it is a sixth of their time
    tracker = TRACKER_CLASSES[sys.argv[1]](setup, notify)
    gc.enable()
    told = Dispatcher(tracker, notify)

    def exit_process(exit_code: int) -> None:
        if told.num_dropped:
            notify(f"{told.num_dropped:,} events were not tracked")
        os._exit(exit_code)  # no exit handler of a client is waited for

    def exit_after_grace() -> None:
        time.sleep(FAILED_GRACE_SECONDS if told.is_failing else setup["grace_seconds"])
        exit_process(1)

    told.run(_read_lines(exit_after_grace))
    try:
        tracker.close()
    except Exception as error:  # of whatever class the client has
        notify(f"{format_root_cause(error)}; the last of it may be lost")
        exit_process(1)
    exit_process(0)


def _read_lines(on_eof: Callable[[], None]) -> Iterator[str]:
    """The lines of standard input, whose end is noticed at once, also where the command has died and a client hangs."""
    lines: queue.Queue[str | None] = queue.Queue(MAX_QUEUED_LINES)

    def read_stdin() -> None:
        for line in sys.stdin:
            lines.put(line)
        lines.put(None)
        on_eof()

    threading.Thread(target=read_stdin, daemon=True).start()
    while (line := lines.get()) is not None:
        yield line


if __name__ == "__main__":
    main()
