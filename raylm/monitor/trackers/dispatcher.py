"""Sends trial events to experiment trackers. No call here waits for a tracker.

Each tracker has a process of its own (`raylm.monitor.trackers.worker`). Events go into a bounded queue; a thread writes
them to the standard input of the process. A tracker that hangs, crashes or is killed loses its own metrics only.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.data import cache
from raylm.events import TrialListener
from raylm.monitor.trackers.clients import TrackerSetup
from raylm.monitor.trackers.environment import tracker_environment
from raylm.monitor.trackers.options import TrackerOptions
from raylm.results.progress import LOSS_NAMES, StepMetrics
from raylm.results.rows import Row
from raylm.results.storage import Folder, Storage

MAX_QUEUED_EVENTS = 10_000
"""Events that wait for a tracker's process; further events are dropped."""
QUIET_WAIT_SECONDS = 1.0
"""Time to wait for trackers at the end before a note says so."""
GRACE_SECONDS = 20.0
"""Time for the remaining events to arrive at the end."""
TRACKED_METRICS = (*LOSS_NAMES, "tokens_per_second")
"""Metrics of an evaluation that are tracked."""


class TrackerPool(TrialListener):
    """Context manager that sends the trial events of a launch to all trackers."""

    def __init__(
        self,
        options: TrackerOptions,
        storage: Storage,
        sweep_id: str,
        rows: Sequence[Row],
        notify: Callable[[str], None],
    ) -> None:
        """Create a pool for one launch.

        Args:
            options: the trackers.
            storage: results folder.
            sweep_id: identity of the results folder; a trial that is resumed in it is the same run for a tracker.
            rows: rows before the launch.
            notify: shows a note.
        """
        self.sweep_id, self._notify = sweep_id, notify
        self._is_remote = not isinstance(storage, Folder)
        self._folder = (
            storage.path.resolve() if isinstance(storage, Folder) else _local_tracker_folder(storage, sweep_id)
        )
        self._option_notes = options.notes
        self._setups = _build_setups(options, storage.name, str(self._folder))
        self._last_evals = {
            row.config.run_name: (row.evaluations[-1].step, _row_best(row)) for row in rows if row.metrics
        }
        """Step of the latest evaluation and losses of the best one, by run name."""
        self._last_steps: dict[str, StepMetrics] = {}
        self._processes: list[TrackerProcess] = []
        self._has_sent = False
        self._lock = threading.Lock()
        self._running: set[str] = set()
        """Run names of trials that have started and not ended."""

    def __enter__(self) -> TrackerPool:
        """Start the processes of the trackers."""
        for note in self._option_notes:
            self._notify(note)
        if self._is_remote:
            self._notify(f"trackers write their files on this machine, in {self._folder}")
        for name, setup in self._setups.items():
            if (self._folder / name).is_symlink():
                self._notify(f"{name}: not tracked, {self._folder / name} is a link, which is not followed")
                continue
            try:
                self._processes.append(TrackerProcess(name, setup, self._notify))
            except OSError as error:  # the limit of processes, or a full disk
                self._notify(f"{name}: {error.strerror}; the sweep continues without it")
        return self

    def __exit__(self, *exception: object) -> None:
        """Wait for the remaining events, `GRACE_SECONDS` at most, then end the processes; at once if none were sent."""
        try:
            self.close()
            if self._has_sent:
                self._wait()
        finally:
            for process in self._processes:
                process.kill()

    def close(self) -> None:
        """Signal the end of the events; does not wait."""
        for process in self._processes:
            process.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + QUIET_WAIT_SECONDS
        pending = [process.name for process in self._processes if not process.wait(deadline)]
        if pending:
            self._notify(f"waiting for {', '.join(pending)}: {GRACE_SECONDS:.0f} s at most")
        deadline += GRACE_SECONDS
        for process in self._processes:
            if not process.wait(deadline):
                self._notify(f"{process.name}: not finished after {GRACE_SECONDS:.0f} s; the last metrics may be lost")
            if process.num_dropped:
                self._notify(f"{process.name}: {process.num_dropped:,} events were dropped because it was too slow")
        if "wandb" in self._setups and self._has_unsynced_runs():
            self._notify(f"wandb: upload the rest with wandb sync --include-online {self._folder}/wandb/*run-*")

    def _has_unsynced_runs(self) -> bool:
        """Return whether files of wandb hold runs that the server may not have."""
        files = list((self._folder / "wandb").glob("*run-*/*.wandb"))
        has_failed = any(process.name == "wandb" and process.has_failed for process in self._processes)
        return any(
            not file.with_name(f"{file.name}.synced").exists()
            and (has_failed or file.parent.name.startswith("offline"))
            for file in files
        )

    # ---- events ---------------------------------------------------------------------------------------------------

    def on_trial_start(self, trial: TrialConfig) -> None:
        """Send the trial with the id of its run."""
        tracked = {"id": f"{trial.id}-{self.sweep_id}", "trial_id": trial.id, "config": trial.as_dict()}
        self._send("start", trial, {"trial": tracked})

    def on_step(self, trial: TrialConfig, step: StepMetrics) -> None:
        """Send a new step."""
        if step != self._last_steps.get(trial.run_name):
            self._last_steps[trial.run_name] = step
            metrics = {"loss": step.loss, "tokens_per_second": step.tokens_per_second}
            self._send("metrics", trial, {"step": step.step, "tokens_seen": step.tokens_seen, "metrics": metrics})

    def on_evaluate(self, trial: TrialConfig, metrics: Mapping[str, Any]) -> None:
        """Send an evaluation and the best one so far."""
        step, best = metrics["step"], _best_so_far(metrics)
        self._last_evals[trial.run_name] = step, best
        tracked = {name: metrics[name] for name in TRACKED_METRICS if name in metrics}
        self._send(
            "metrics",
            trial,
            {"step": step, "tokens_seen": metrics["tokens_seen"], "metrics": tracked, "best": best},
        )

    def on_trial_end(self, trial: TrialConfig, status: str, reason: str) -> None:
        """Send the status and the best evaluation."""
        step, best = self._last_evals.get(trial.run_name, (0, None))
        self._send("end", trial, {"status": status, "reason": reason, "step": step, "best": best})

    def _send(self, event: str, trial: TrialConfig, payload: Mapping[str, Any]) -> None:
        """Queue an event for every tracker. Events of a trial that is not running are dropped.

        A step that is read before its trial ends and arrives after would otherwise start the run again: its summary
        would be lost and its status would be "interrupted".
        """
        run_name = trial.run_name
        line = json.dumps({"event": event, "run": run_name, **payload}).encode() + b"\n"
        with self._lock:  # check and queue at once: no event may come between the end of a trial and its removal
            if event == "start":
                self._running.add(run_name)
            elif run_name not in self._running:
                return
            elif event == "end":
                self._running.remove(run_name)
            self._has_sent = True
            for process in self._processes:
                process.put(line)


def _build_setups(options: TrackerOptions, sweep: str, folder: str) -> dict[str, TrackerSetup]:
    """Return the setups of all enabled trackers by name."""
    destinations = {
        "tensorboard": "",
        "wandb": None if options.wandb == "disabled" else options.wandb,
        "mlflow": options.mlflow,
        "trackio": options.trackio,
    }
    return {
        name: TrackerSetup(sweep, folder, GRACE_SECONDS, destination)
        for name, destination in destinations.items()
        if destination is not None
    }


def _row_best(row: Row) -> dict[str, float] | None:
    """Return losses and epoch of a row's best evaluation."""
    if row.metrics is None:
        return None
    return {**{name: getattr(row.metrics, name) for name in LOSS_NAMES}, "best_epoch": row.metrics.epoch}


def _best_so_far(metrics: Mapping[str, Any]) -> dict[str, float] | None:
    """Return losses and epoch of the best evaluation so far, as `Evaluation.metrics` holds them."""
    if "best_val_loss" not in metrics:
        return None
    return {**{name: metrics[f"best_{name}"] for name in LOSS_NAMES}, "best_epoch": metrics["best_epoch"]}


def _local_tracker_folder(storage: Storage, sweep_id: str) -> Path:
    """Return the folder for files of trackers if the results are in a bucket."""
    return cache.cache_dir(f"trackers/{storage.name}-{sweep_id}")


class TrackerProcess:
    """Process of a tracker, with a queue of its events and threads that write them and read its notes."""

    def __init__(self, name: str, setup: TrackerSetup, notify: Callable[[str], None]) -> None:
        self.name = name
        self._notify = notify
        self._queue: queue.Queue[bytes | None] = queue.Queue(MAX_QUEUED_EVENTS)
        self.num_dropped = 0
        """Number of events that the queue had no room for."""
        self._is_closing = False
        self._stderr_file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "raylm.monitor.trackers.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr_file,
            env=tracker_environment(),
            start_new_session=True,  # Ctrl-C is for the command
        )
        self.put(json.dumps(asdict(setup)).encode() + b"\n")
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in (self._write_loop, self._read_loop)]
        for thread in self._threads:
            thread.start()

    def put(self, line: bytes) -> None:
        """Queue a line for the process, or drop it if the queue is full; never waits."""
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self.num_dropped += 1

    def close(self) -> None:
        """Queue the end of the events."""
        self._is_closing = True
        with contextlib.suppress(queue.Full):  # it hangs, and will be killed
            self._queue.put_nowait(None)

    def wait(self, deadline: float) -> bool:
        """Wait until the process has ended and all its notes are shown; return False if it has not by the deadline."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def kill(self) -> None:
        """Kill the process and its children if it has not ended."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.wait(time.monotonic() + QUIET_WAIT_SECONDS)
        self._stderr_file.close()

    @property
    def has_failed(self) -> bool:
        """True unless the process has ended with exit code 0."""
        return self._process.poll() != 0

    def _write_loop(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # it has died; `_read_loop` reports that
            while (line := self._queue.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _read_loop(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._notify(f"{self.name}: {line.decode(errors='replace').rstrip()}")
        code = self._process.wait()
        if not self._is_closing:
            self._notify(
                f"{self.name}: its process ended ({code}){self._last_stderr_line()}; the sweep continues without it"
            )

    def _last_stderr_line(self) -> str:
        """Return the last line of the process's standard error, with a colon before it."""
        self._stderr_file.seek(0)
        lines = self._stderr_file.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""
