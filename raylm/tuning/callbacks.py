"""Tune callback of a launch, and the poller of running trials' steps."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import tune
from ray.tune.experiment import Trial

from raylm.config.trial import TrialConfig
from raylm.errors import PauseReason, WorkError
from raylm.events import DEFERRED, PAUSE_TIMEOUT_SECONDS, PAUSED, TrialListener
from raylm.results.folder import load_row, write_final_status
from raylm.results.json_files import DamagedFileError, read_text
from raylm.results.rows import DIVERGED, DONE, FAILED, STOPPED, Row
from raylm.results.storage import Storage
from raylm.results.sweep_record import RECORD_FILE
from raylm.stages import mark_stage
from raylm.tuning.searcher import get_trial_config
from raylm.tuning.trial_queue import TrialQueue

ANSI_COLOR = re.compile(r"\x1b\[[0-9;]*m")
"""Colors in Ray's error texts."""
RAYLM_ERROR_PREFIX = re.compile(r"^raylm(\.\w+)+: ")
"""Class name in front of the text of a raylm error, which needs none."""
MAX_REASON_CHARS = 500


class LaunchCallback(tune.Callback):
    """Tune callback that forwards events to a listener, records final statuses in storage, and pauses the launch.

    A first SIGINT (Ctrl-C), SIGTERM or SIGHUP (the terminal is closed), a full disk and a used-up time budget pause it:
    running trials save a checkpoint and end. A second SIGINT ends the command at once.
    """

    def __init__(
        self,
        storage: Storage,
        launches: Sequence[str],
        queue: TrialQueue,
        listener: TrialListener,
        coordinator: Any,
        deadline: float | None,
    ) -> None:
        """Create the callback of one run of Tune.

        Args:
            launches: names of the launches' folders in the results folder, the present one last.
            coordinator: handle of the `Coordinator` actor.
            deadline: value of `time.monotonic()` at which the launch is paused; None: unlimited.
        """
        self._storage, self._launches, self._queue = storage, launches, queue
        self._listener, self._coordinator, self._deadline = listener, coordinator, deadline
        self._tune_sigint_handler: Any = None
        self._pause_deadline: float | None = None
        self.running: dict[str, TrialConfig] = {}
        """Running trials, by run name."""
        self.pause_reason: PauseReason | None = None
        """Reason for which the launch was paused; None if it was not."""
        self.deferred: dict[str, TrialConfig] = {}
        """Trials that ran out of memory beside others, by run name."""

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state: Tune pickles its callbacks, but raylm never restores Tune's state."""
        return {}

    # ---- events of Tune -------------------------------------------------------------------------------------------

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Install signal handlers, and pause or stop Tune if it is time to."""
        if self._tune_sigint_handler is None and threading.current_thread() is threading.main_thread():
            self._tune_sigint_handler = signal.signal(signal.SIGINT, self._on_signal)
            signal.signal(signal.SIGTERM, self._on_signal)
            if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` sets it
                signal.signal(signal.SIGHUP, self._on_signal)
        if self._deadline and time.monotonic() > self._deadline:
            self.pause(PauseReason.BUDGET_USED)
        if self.deferred and not self.running and not self._queue.all_dispatched:
            self._tune_sigint_handler(signal.SIGINT, None)  # the other trials wait for results of deferred ones
        if self._pause_deadline and (not self.running or time.monotonic() > self._pause_deadline):
            self._pause_deadline = None
            self._tune_sigint_handler(signal.SIGINT, None)  # Tune stops the trials that still run

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Handle the start of an attempt of a trial."""
        config = get_trial_config(trial)
        mark_stage(f"trial {config.id} begins")
        if not self.pause_reason:
            self.running[config.run_name] = config
            self._listener.on_trial_start(config)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Handle a report of a trial: an evaluation, a checkpoint between evaluations, or the reason for its end."""
        if "checkpoint_score" in result:
            self._coordinator.record_checkpoint.remote(get_trial_config(trial).run_name)
        if "val_loss" in result:
            self._listener.on_evaluate(get_trial_config(trial), result)
        elif "memory" in result:
            config = get_trial_config(trial)
            self.deferred[config.run_name] = config
        elif result.get("paused") in (PauseReason.DISK_FULL, PauseReason.FILE_LIMIT):
            self.pause(PauseReason(result["paused"]), f" ({result['detail']})")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Handle a failed attempt that Tune follows with another."""
        self._check_results_folder()
        config, reason = get_trial_config(trial), read_failure_reason(trial)
        self._coordinator.record_restart.remote(config.run_name, reason)
        self._listener.on_retry(config, reason)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Handle the return of a trial's function, or its stop by a scheduler."""
        config, last = get_trial_config(trial), trial.last_result or {}
        mark_stage(f"trial {config.id} has ended")
        row = self._load_row(config)
        if "reason" in last:
            self._finish_trial(row, FAILED, str(last["reason"]))
        elif last.get("diverged"):
            self._finish_trial(row, DIVERGED, f"the loss was not finite in epoch {last['epoch']:.0f}")
        elif row.status == DONE:
            self._finish_trial(row, DONE, "")
        elif config.run_name in self.deferred or "paused" in last or self.pause_reason:
            self.running.pop(config.run_name, None)
            self._listener.on_trial_end(config, DEFERRED if "memory" in last else PAUSED, last.get("memory", ""))
        else:
            reason = self._queue.find_stop_reason(config, row) or "by the scheduler"
            self._finish_trial(row, STOPPED, reason)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Handle the last failed attempt of a trial."""
        self._check_results_folder()
        self._finish_trial(self._load_row(get_trial_config(trial)), FAILED, read_failure_reason(trial))

    def _load_row(self, config: TrialConfig) -> Row:
        return load_row(self._storage, config, self._launches)

    def _check_results_folder(self) -> None:
        """Raise a WorkError, which ends the launch, if the results folder has been removed: each retry would fail."""
        with contextlib.suppress(DamagedFileError):
            if read_text(self._storage, RECORD_FILE) is None:
                raise WorkError(
                    f"{self._storage.uri} was removed while trials ran; run the same command to start again"
                )

    def _finish_trial(self, row: Row, status: str, reason: str) -> None:
        """Record the final status of a trial, given its row before."""
        config = row.config
        if status != DONE:
            write_final_status(self._storage, self._launches[-1], config, status, reason)
        self._queue.mark_finished(replace(row, status=status, reason=reason))
        self.running.pop(config.run_name, None)
        self._listener.on_trial_end(config, status, reason)

    def handle_tune_error(self, error: Exception, exclusive: bool) -> None:
        """Handle an error that Tune has ended with.

        Args:
            exclusive: whether trials run one at a time.

        Raises:
            WorkError: unless the error leaves no trial that has to run in this launch.
        """
        if isinstance(error, WorkError):
            raise error
        if "low on memory" in str(error):
            self.handle_out_of_memory(exclusive)
            return
        is_over = self._queue.all_finished or (self.pause_reason and not self.running)
        if not is_over:  # else Tune has failed in its own analysis, as without a working folder
            lines = str(error).strip().splitlines() or [type(error).__name__]
            own = RAYLM_ERROR_PREFIX.sub("", lines[-1])  # of an error raised here, which Tune wraps
            raise WorkError(own if own != lines[-1] else f"Ray Tune failed: {own}") from error

    def handle_out_of_memory(self, exclusive: bool) -> None:
        """Defer or fail the running trials after Ray's memory monitor killed a process of one of them, and Tune failed.

        Args:
            exclusive: whether trials run one at a time: the running trial has failed then.
        """
        for run_name, config in list(self.running.items()):
            if exclusive:
                self._finish_trial(self._load_row(config), FAILED, "out of memory, alone on its machine")
            else:
                self.deferred[run_name] = self.running.pop(run_name)
                self._listener.on_trial_end(config, DEFERRED, "out of memory")

    # ---- pausing --------------------------------------------------------------------------------------------------

    def pause(self, reason: PauseReason, detail: str = "") -> None:
        """Pause the launch: running trials save a checkpoint and end, no other trial starts.

        Args:
            detail: added to the reason shown to the user.
        """
        if not self.pause_reason:
            self.pause_reason = reason
            self._pause_deadline = time.monotonic() + PAUSE_TIMEOUT_SECONDS
            self._coordinator.pause_all.remote()
            self._listener.on_pause(f"{reason}{detail}")

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.pause_reason and number == signal.SIGINT:
            for process in psutil.Process().children(recursive=True):  # Ray's, if this command started it
                with contextlib.suppress(psutil.Error):  # the process has just ended
                    process.kill()
            os._exit(130)
        self.pause(PauseReason.INTERRUPTED)


def read_failure_reason(trial: Trial) -> str:
    """Return the reason for a trial's last failure, one line, from the error file that Tune writes."""
    path = Path(trial.error_file or "")
    last_failure = path.read_text(encoding="utf-8").rsplit("Failure #", 1)[-1] if path.is_file() else ""
    lines = [line.strip() for line in ANSI_COLOR.sub("", last_failure).splitlines()[1:] if line.strip()]
    if not lines:
        return "unknown error (Ray gave no details)"
    has_traceback = any(line.startswith(("Traceback", "ray::")) for line in lines)
    return RAYLM_ERROR_PREFIX.sub("", lines[-1] if has_traceback else lines[0])[:MAX_REASON_CHARS]


@contextlib.contextmanager
def restore_signal_handlers() -> Iterator[None]:
    """Restore the handlers of the signals that Tune and `LaunchCallback` replace."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class StepPoller:
    """Thread that passes the steps of running trials to a listener. Used as a context."""

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
                continue  # the next poll may succeed; progress is not worth failing a launch
            for run_name, step in steps.items():
                if trial := self._running.get(run_name):
                    self._listener.on_step(trial, step)
