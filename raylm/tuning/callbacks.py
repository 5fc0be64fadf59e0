"""Between Ray Tune and the line-up: the searcher that hands trials out, and who hears of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune
from ray.tune.experiment import Trial

from raylm.config.trial import TrialConfig
from raylm.errors import PauseReason
from raylm.events import DEFERRED, PAUSE_TIMEOUT_SECONDS, PAUSED, TrialListener
from raylm.results.folder import load_row, write_final_status
from raylm.results.rows import DIVERGED, DONE, FAILED, STOPPED
from raylm.results.storage import Storage
from raylm.tuning.searcher import get_trial_config
from raylm.tuning.trial_queue import TrialQueue

ANSI_COLOR = re.compile(r"\x1b\[[0-9;]*m")
"""What Ray puts into its errors for terminals."""
RAYLM_ERROR_PREFIX = re.compile(r"^raylm(\.\w+)+: ")
"""The class of an error whose words say it all."""


class LaunchCallback(tune.Callback):
    """Tells the display what Tune does, storage how trials ended that have no finished checkpoint, and trials to pause.

    A first SIGINT (Ctrl-C) or SIGTERM, a full disk and a used-up time budget have all running trials save themselves
    and end; a second SIGINT ends the command at once.
    """

    def __init__(
        self,
        storage: Storage,
        launch_name: str,
        queue: TrialQueue,
        listener: TrialListener,
        coordinator: Any,
        budget_seconds: float | None,
    ) -> None:
        self._storage, self._launch_name, self._queue, self._listener, self._coordinator = (
            storage,
            launch_name,
            queue,
            listener,
            coordinator,
        )
        self._deadline = time.monotonic() + budget_seconds if budget_seconds else None
        self._tune_sigint_handler: Any = None
        self._pause_deadline: float | None = None
        self.running: dict[str, TrialConfig] = {}
        """Running trials, by run name."""
        self.pause_reason: PauseReason | None = None
        """Why the launch was paused, if it was."""
        self.deferred: dict[str, TrialConfig] = {}
        """Trials that ran out of memory beside others, by run."""

    def __getstate__(self) -> dict[str, Any]:
        """As the searcher's."""
        return {}

    # ---- what Tune tells ------------------------------------------------------------------------------------------

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Between any two events."""
        if self._tune_sigint_handler is None and threading.current_thread() is threading.main_thread():
            self._tune_sigint_handler = signal.signal(signal.SIGINT, self._on_signal)
            signal.signal(signal.SIGTERM, self._on_signal)
        if self._deadline and time.monotonic() > self._deadline:
            self.pause(PauseReason.BUDGET_USED)
        if self.deferred and not self.running and not self._queue.all_dispatched:
            self._tune_sigint_handler(signal.SIGINT, None)  # what is left waits for those that were set aside
        if self._pause_deadline and (not self.running or time.monotonic() > self._pause_deadline):
            self._pause_deadline = None
            self._tune_sigint_handler(signal.SIGINT, None)  # Tune stops what is left

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial got its resources."""
        config = get_trial_config(trial)
        if not self.pause_reason:
            self.running[config.run_name] = config
            self._listener.on_trial_start(config)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported an evaluation, a checkpoint on its way, or why it cannot go on."""
        if "val_loss" in result:
            self._listener.on_evaluate(get_trial_config(trial), result)
        elif "memory" in result:
            config = get_trial_config(trial)
            self.deferred[config.run_name] = config
        elif result.get("paused") == PauseReason.DISK_FULL:
            self.pause(PauseReason.DISK_FULL, f" ({result['detail']})")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed and is started again."""
        config, reason = get_trial_config(trial), read_failure_reason(trial)
        self._coordinator.record_restart.remote(config.run_name, reason)
        self._listener.on_retry(config, reason)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial's function returned, or a scheduler stopped it."""
        config, last = get_trial_config(trial), trial.last_result or {}
        row = load_row(self._storage, config)
        if "reason" in last:
            self._finish_trial(config, FAILED, str(last["reason"]))
        elif last.get("diverged"):
            self._finish_trial(config, DIVERGED, f"the loss was not finite in epoch {last['epoch']:.0f}")
        elif row.status == DONE:
            self._finish_trial(config, DONE, "")
        elif config.run_name in self.deferred or "paused" in last or self.pause_reason:
            self.running.pop(config.run_name, None)
            self._listener.on_trial_end(config, DEFERRED if "memory" in last else PAUSED, last.get("memory", ""))
        else:
            reason = self._queue.find_stop_reason(config, row) or "by the scheduler"
            self._finish_trial(config, STOPPED, reason)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial failed for the last time."""
        self._finish_trial(get_trial_config(trial), FAILED, read_failure_reason(trial))

    def _finish_trial(self, config: TrialConfig, status: str, reason: str) -> None:
        if status != DONE:
            write_final_status(self._storage, self._launch_name, config, status, reason)
        self._queue.mark_finished(config)
        self.running.pop(config.run_name, None)
        self._listener.on_trial_end(config, status, reason)

    def handle_out_of_memory(self, exclusive: bool) -> None:
        """Ray's own monitor ended a process, and Tune with it: whichever it was, it was one of those that ran."""
        for run, config in list(self.running.items()):
            if exclusive:
                self._finish_trial(config, FAILED, "out of memory, alone on its machine")
            else:
                self.deferred[run] = config

    # ---- pausing --------------------------------------------------------------------------------------------------

    def pause(self, reason: PauseReason, detail: str = "") -> None:
        """Has all running trials save themselves and end, and no other begin."""
        if not self.pause_reason:
            self.pause_reason = reason
            self._pause_deadline = time.monotonic() + PAUSE_TIMEOUT_SECONDS
            self._coordinator.pause_all.remote()
            self._listener.on_pause(f"{reason}{detail}")

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.pause_reason and number == signal.SIGINT:
            for process in psutil.Process().children(recursive=True):  # Ray, where this command has started it
                with contextlib.suppress(psutil.Error):  # it has just ended
                    process.kill()
            os._exit(130)
        self.pause(PauseReason.INTERRUPTED)


def read_failure_reason(trial: Trial) -> str:
    """What a trial failed of the last time, in a line, from the file in which Tune notes it at once."""
    path = Path(trial.error_file or "")
    noted = path.read_text(encoding="utf-8").rsplit("Failure #", 1)[-1] if path.is_file() else ""
    lines = [line.strip() for line in ANSI_COLOR.sub("", noted).splitlines()[1:] if line.strip()]
    if not lines:
        return "for a reason that Ray does not tell"
    raised = any(line.startswith(("Traceback", "ray::")) for line in lines)
    return RAYLM_ERROR_PREFIX.sub("", lines[-1] if raised else lines[0])[:500]


class StepPoller:
    """While it is entered, the steps of running trials are brought to the display by a thread of its own."""

    POLL_SECONDS = 0.5

    def __init__(self, coordinator: Any, listener: TrialListener, running: Mapping[str, TrialConfig]) -> None:
        self._coordinator, self._listener, self._running = coordinator, listener, running
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._stop_event.set()
        self._thread.join(timeout=15)

    def _poll(self) -> None:
        while not self._stop_event.wait(self.POLL_SECONDS):
            try:
                steps = ray.get(self._coordinator.get_steps.remote(), timeout=10)
            except (ray.exceptions.RayError, TimeoutError):
                continue  # no display is worth a trial; the next look may succeed
            for run_name, step in steps.items():
                if trial := self._running.get(run_name):
                    self._listener.on_step(trial, step)
