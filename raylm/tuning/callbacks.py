"""Between Ray Tune and the line-up: the searcher that hands trials out, and who hears of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune
from ray.tune.experiment import Trial

from raylm.config.trial import TrialConfig
from raylm.errors import Pause
from raylm.events import PAUSED, SET_ASIDE, Live
from raylm.results.folder import find_row, write_ending
from raylm.results.rows import DIVERGED, DONE, FAILED, STOPPED
from raylm.results.storage import Storage
from raylm.tuning.searcher import config_of
from raylm.tuning.trial_queue import Lineup

PAUSE_SECONDS = 25.0
"""Time that running trials have to save themselves; after it they are stopped where they are."""

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""What Ray puts into its errors for terminals."""
OWN_ERROR = re.compile(r"^raylm(\.\w+)+: ")
"""The class of an error whose words say it all."""


class Watcher(tune.Callback):
    """Tells the display what Tune does, storage how trials ended that have no finished checkpoint, and trials to pause.

    A first SIGINT (Ctrl-C) or SIGTERM, a full disk and a used-up time budget have all running trials save themselves
    and end; a second SIGINT ends the command at once.
    """

    def __init__(
        self, folder: Storage, launch: str, lineup: Lineup, live: Live, board: Any, budget_seconds: float | None
    ) -> None:
        self._folder, self._launch, self._lineup, self._live, self._board = folder, launch, lineup, live, board
        self._deadline = time.monotonic() + budget_seconds if budget_seconds else None
        self._tune_interrupts: Any = None
        self._pause_until: float | None = None
        self._running: dict[str, TrialConfig] = {}
        self.pause_reason: Pause | None = None
        """Why the launch was paused, if it was."""
        self.set_aside: dict[str, TrialConfig] = {}
        """Trials that ran out of memory beside others, by run."""

    def __getstate__(self) -> dict[str, Any]:
        """As the searcher's."""
        return {}

    # ---- what Tune tells ------------------------------------------------------------------------------------------

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Between any two events."""
        if self._tune_interrupts is None and threading.current_thread() is threading.main_thread():
            self._tune_interrupts = signal.signal(signal.SIGINT, self._on_signal)
            signal.signal(signal.SIGTERM, self._on_signal)
        if self._deadline and time.monotonic() > self._deadline:
            self.pause(Pause.BUDGET_USED)
        if self.set_aside and not self._running and not self._lineup.finished:
            self._tune_interrupts(signal.SIGINT, None)  # what is left waits for those that were set aside
        if self._pause_until and (not self._running or time.monotonic() > self._pause_until):
            self._pause_until = None
            self._tune_interrupts(signal.SIGINT, None)  # Tune stops what is left

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial got its resources."""
        config = config_of(trial)
        if not self.pause_reason:
            self._running[config.run_name] = config
            self._live.started(config.run_name)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported an evaluation, a checkpoint on its way, or why it cannot go on."""
        if "val_loss" in result:
            self._live.evaluated(config_of(trial).run_name, result)
        elif "memory" in result:
            config = config_of(trial)
            self.set_aside[config.run_name] = config
        elif result.get("paused") == Pause.DISK_FULL:
            self.pause(Pause.DISK_FULL, f" ({result['detail']})")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed and is started again."""
        run, reason = config_of(trial).run_name, failure_reason(trial)
        self._board.recovered.remote(run, reason)
        self._live.retried(run, reason)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's function returned, or a scheduler stopped it."""
        config, last = config_of(trial), trial.last_result or {}
        row = find_row(self._folder, config)
        if "reason" in last:
            self._end(config, FAILED, str(last["reason"]))
        elif last.get("diverged"):
            self._end(config, DIVERGED, f"the loss was not finite in epoch {last['epoch']:.0f}")
        elif row.status == DONE:
            self._end(config, DONE, "")
        elif config.run_name in self.set_aside or "paused" in last or self.pause_reason:
            self._running.pop(config.run_name, None)
            self._live.ended(config.run_name, SET_ASIDE if "memory" in last else PAUSED, last.get("memory", ""))
        else:
            reason = self._lineup.is_beyond_limit(config, row) or "by the scheduler"
            self._end(config, STOPPED, reason)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed for the last time."""
        self._end(config_of(trial), FAILED, failure_reason(trial))

    def _end(self, config: TrialConfig, status: str, reason: str) -> None:
        if status != DONE:
            write_ending(self._folder, self._launch, config, status, reason)
        self._lineup.ended(config)
        self._running.pop(config.run_name, None)
        self._live.ended(config.run_name, status, reason)

    def out_of_memory(self, alone: bool) -> None:
        """Ray's own monitor ended a process, and Tune with it: whichever it was, it was one of those that ran."""
        for run, config in list(self._running.items()):
            if alone:
                self._end(config, FAILED, "out of memory, alone on its machine")
            else:
                self.set_aside[run] = config

    # ---- pausing --------------------------------------------------------------------------------------------------

    def pause(self, reason: Pause, detail: str = "") -> None:
        """Has all running trials save themselves and end, and no other begin."""
        if not self.pause_reason:
            self.pause_reason = reason
            self._pause_until = time.monotonic() + PAUSE_SECONDS
            self._board.pause.remote()
            self._live.pausing(f"{reason}{detail}")

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.pause_reason and number == signal.SIGINT:
            for process in psutil.Process().children(recursive=True):  # Ray, where this command has started it
                with contextlib.suppress(psutil.Error):  # it has just ended
                    process.kill()
            os._exit(130)
        self.pause(Pause.INTERRUPTED)


def failure_reason(trial: Trial) -> str:
    """What a trial failed of the last time, in a line, from the file in which Tune notes it at once."""
    path = Path(trial.error_file or "")
    noted = path.read_text(encoding="utf-8").rsplit("Failure #", 1)[-1] if path.is_file() else ""
    lines = [line.strip() for line in COLOUR.sub("", noted).splitlines()[1:] if line.strip()]
    if not lines:
        return "for a reason that Ray does not tell"
    raised = any(line.startswith(("Traceback", "ray::")) for line in lines)
    return OWN_ERROR.sub("", lines[-1] if raised else lines[0])[:500]


class StepsShown:
    """While it is entered, the steps of running trials are brought to the display by a thread of its own."""

    SECONDS_BETWEEN_LOOKS = 0.5

    def __init__(self, board: Any, live: Live) -> None:
        self._board, self._live = board, live
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._finished.set()
        self._thread.join(timeout=15)

    def _look(self) -> None:
        while not self._finished.wait(self.SECONDS_BETWEEN_LOOKS):
            try:
                steps = ray.get(self._board.steps.remote(), timeout=10)
            except (ray.exceptions.RayError, TimeoutError):
                continue  # no display is worth a trial; the next look may succeed
            for run, step in steps.items():
                self._live.stepped(run, step)
