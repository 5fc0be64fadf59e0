"""Process of one experiment tracker: it reads events as JSON lines, so that a failing client harms nothing else.

    python -m raylm.monitor.trackers.worker wandb < events

The first line is a `TrackerSetup`, each other line an event of a trial. Lines of standard output are notes for the
user. `raylm.monitor.trackers.dispatcher` starts these processes and writes the events.
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
    TrackedTrial,
    Tracker,
    TrackerSetup,
    TrackioTracker,
    format_root_cause,
)
from raylm.monitor.trackers.wandb_client import WandbTracker

TRACKER_CLASSES: Mapping[str, Callable[[TrackerSetup, Notify], Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorBoardTracker,
    "mlflow": MLflowTracker,
    "trackio": TrackioTracker,
}
NICENESS = 19
"""Niceness of the process: trials come first, Ray's workers have 15."""
RETRY_SECONDS = 30.0
"""Pause after an error of a tracker; events that come meanwhile are dropped."""
FAILED_GRACE_SECONDS = 0.5
"""Grace time at the end if the latest event of the tracker failed."""
MAX_QUEUED_LINES = 100_000
"""Lines to read ahead, so that the end of the input is noticed while a client hangs."""


class Dispatcher:
    """Dispatches events to a tracker. After an error, events are dropped for `RETRY_SECONDS`."""

    def __init__(self, tracker: Tracker, notify: Notify) -> None:
        self._tracker, self._notify = tracker, notify
        self._trials: dict[str, TrackedTrial] = {}
        self._handles: dict[str, Any] = {}
        self._retry_after = 0.0
        self._has_reported_error = False
        self.is_failing = False
        """True if the latest event that was passed to the tracker failed."""
        self.num_dropped = 0
        """Number of events that did not reach the tracker."""

    def run(self, lines: Iterable[str]) -> None:
        """Dispatch all events, then end the trials that have not ended."""
        for line in lines:
            self._dispatch(json.loads(line))
        for run_name in list(self._handles):
            self._dispatch({"event": "end", "run": run_name, "status": "interrupted", "reason": ""})

    def _dispatch(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "start":  # the tracker starts the run with the first metrics of the trial
            self._trials[event["run"]] = TrackedTrial(event["run"], **event["trial"])
            return
        if time.monotonic() < self._retry_after:
            self.num_dropped += 1
            return
        try:
            self._apply(event)
            self.is_failing = False
        except Exception as error:  # of any class that a client has
            self.num_dropped += 1
            self.is_failing = True
            self._retry_after = time.monotonic() + RETRY_SECONDS
            if not self._has_reported_error:
                self._has_reported_error = True
                retry = f"and retries every {RETRY_SECONDS:.0f} s"
                self._notify(f"{format_root_cause(error)}; the sweep continues without it {retry}")

    def _apply(self, event: Mapping[str, Any]) -> None:
        run_name = event["run"]
        if run_name not in self._handles:
            self._handles[run_name] = self._tracker.start_trial(self._trials[run_name])
        handle = self._handles[run_name]
        if metrics := event.get("metrics"):
            self._tracker.log_metrics(handle, event["step"], event["tokens_seen"], metrics)
        if best := event.get("best"):
            self._tracker.log_best(handle, event["step"], best)
        if event["event"] == "end":
            del self._handles[run_name]
            self._tracker.end_trial(handle, event["status"], event["reason"])


def main() -> None:
    """Track the events of standard input; after its end, exit within the grace time."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the command closes the input when it ends
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the output of clients is not for the user

    def notify(text: str) -> None:
        print(text, file=output, flush=True)

    setup = TrackerSetup(**json.loads(sys.stdin.readline()))
    gc.disable()  # collecting garbage takes a sixth of the time of imports, which leave none
    tracker = TRACKER_CLASSES[sys.argv[1]](setup, notify)
    gc.enable()
    dispatcher = Dispatcher(tracker, notify)

    def exit_process(exit_code: int) -> None:
        if dispatcher.num_dropped:
            notify(f"{dispatcher.num_dropped:,} events were not tracked")
        os._exit(exit_code)  # without the exit handlers of clients

    def exit_after_grace() -> None:
        time.sleep(FAILED_GRACE_SECONDS if dispatcher.is_failing else setup.grace_seconds)
        exit_process(1)

    dispatcher.run(_read_lines(exit_after_grace))
    try:
        tracker.close()
    except Exception as error:  # of any class that a client has
        notify(f"{format_root_cause(error)}; the last metrics may be lost")
        exit_process(1)
    exit_process(0)


def _read_lines(on_eof: Callable[[], None]) -> Iterator[str]:
    """Yield the lines of standard input.

    Args:
        on_eof: called at the end of the input, in a thread, also while a client hangs.
    """
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
