"""Telling experiment trackers what happens to trials. Nothing here waits for any of them.

Each tracker has a process of its own (`tracker`). What happens to trials goes into a bounded queue, from there by a
thread into the process's standard input: one that hangs, crashes or is killed costs its own numbers and nothing else.
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
from raylm.monitor.trackers.options import TrackerOptions
from raylm.results.progress import EvalMetrics, StepMetrics
from raylm.results.rows import Row
from raylm.results.storage import Folder, Storage

MAX_QUEUED_EVENTS = 10_000
"""Events that wait for a tracker's process; those beyond are lost to it."""
SILENT_WAIT_SECONDS = 1.0
"""After this time it is said what is waited for."""
GRACE_SECONDS = 20.0
"""In the end, what is on its way to trackers has so long to arrive."""
TRACKED_METRICS = ("train_loss", "val_loss", "adj_val_loss", "tokens_per_second")
"""Numbers of an evaluation that are tracked."""


class TrackerPool(TrialListener):
    """Tells trackers what happens to trials, as `Live` is told of it. Used as a context."""

    def __init__(
        self,
        options: TrackerOptions,
        storage: Storage,
        sweep_id: str,
        rows: Sequence[Row],
        notify: Callable[[str], None],
    ) -> None:
        """For one launch.

        Args:
            identity: of the results folder: a trial that goes on in it is the same run for a tracker.
            rows: how the sweep stands.
            say: shows a note.
        """
        self.sweep_id, self._notify = sweep_id, notify
        self._is_remote = not isinstance(storage, Folder)
        self._folder = (
            storage.path.resolve() if isinstance(storage, Folder) else _local_tracker_folder(storage, sweep_id)
        )
        self._evaluations = {row.config.run_name: {one.step: one for one in row.evaluations} for row in rows}
        self._steps: dict[str, StepMetrics] = {}
        setup = {"sweep": storage.name, "folder": str(self._folder), "grace_seconds": GRACE_SECONDS}
        self._setups: dict[str, Mapping[str, Any]] = {"tensorboard": setup}
        if options.wandb != "disabled":
            self._setups["wandb"] = {**setup, "mode": options.wandb}
        for name, place in (("mlflow", options.mlflow), ("trackio", options.trackio)):
            if place is not None:
                self._setups[name] = {**setup, "place": place}
        self._processes: list[TrackerProcess] = []
        self._has_sent = False
        self._lock = threading.Lock()
        self._running: set[str] = set()
        """Runs that have started and not ended. Steps come from a thread of their own, the last of them also late."""

    def __enter__(self) -> TrackerPool:
        """Starts the trackers' processes."""
        if self._is_remote:
            self._notify(f"trackers: their files are on this machine, in {self._folder}")
        for name, setup in self._setups.items():
            if (self._folder / name).is_symlink():
                self._notify(
                    f"{name}: {self._folder / name} is a link, which is not followed; nothing is tracked there"
                )
                continue
            try:
                self._processes.append(TrackerProcess(name, setup, self._notify))
            except OSError as error:  # no more processes, no room
                self._notify(f"{name}: {error.strerror}; the sweep goes on without it")
        return self

    def __exit__(self, *exception: object) -> None:
        """Gives what is on its way some seconds, then ends the processes; where there is nothing, at once."""
        try:
            self.close()
            if not self._has_sent:
                return
            deadline = time.monotonic() + SILENT_WAIT_SECONDS
            left = [one for one in self._processes if not one.wait(deadline)]
            if left:
                self._notify(f"waiting for {', '.join(one.name for one in left)}: {GRACE_SECONDS:.0f} s at most")
            deadline += GRACE_SECONDS
            for one in self._processes:
                if not one.wait(deadline):
                    self._notify(
                        f"{one.name}: not finished after {GRACE_SECONDS:.0f} s; what was on its way may be lost"
                    )
                if one.num_dropped:
                    self._notify(f"{one.name}: {one.num_dropped:,} events were not taken in time")
            if "wandb" in self._setups and self._has_unsynced_runs():
                self._notify(
                    f"wandb: wandb sync --include-online {self._folder}/wandb/*run-* brings the rest to the server"
                )
        finally:
            for one in self._processes:
                one.kill()

    def close(self) -> None:
        """There is no more to tell."""
        for one in self._processes:
            one.close()

    def _has_unsynced_runs(self) -> bool:
        """Whether there are runs on this machine that the server may not have."""
        runs = list((self._folder / "wandb").glob("*run-*/*.wandb"))
        online = any(one.name == "wandb" and one.has_failed for one in self._processes)
        return any(
            not run.with_name(f"{run.name}.synced").exists() and (online or run.parent.name.startswith("offline"))
            for run in runs
        )

    # ---- what Live tells ------------------------------------------------------------------------------------------

    def on_trial_start(self, trial: TrialConfig) -> None:
        """See `Live`."""
        run_name = trial.run_name
        config = {"id": f"{trial.id}-{self.sweep_id}", "trial_id": trial.id, "config": trial.as_dict()}
        self._send("begin", run_name, config)

    def on_step(self, trial: TrialConfig, step: StepMetrics) -> None:
        """See `Live`."""
        run_name = trial.run_name
        if step != self._steps.get(run_name):
            self._steps[run_name] = step
            values = {"loss": step.loss, "tokens_per_second": step.tokens_per_second}
            self._send("numbers", run_name, {"step": step.step, "tokens": step.tokens_seen, "values": values})

    def on_evaluate(self, trial: TrialConfig, metrics: Mapping[str, Any]) -> None:
        """See `Live`."""
        run_name = trial.run_name
        values = {name: metrics[name] for name in TRACKED_METRICS if name in metrics}
        if {"train_loss", "val_loss", "adj_val_loss"} <= values.keys():
            losses = [values[name] for name in TRACKED_METRICS[:3]]
            measured = EvalMetrics(metrics["epoch"], metrics["step"], metrics["tokens_seen"], *losses)
            self._evaluations.setdefault(run_name, {})[measured.step] = measured
        told = {
            "step": metrics["step"],
            "tokens": metrics["tokens_seen"],
            "values": values,
            "best": self._best_metrics(run_name),
        }
        self._send("numbers", run_name, told)

    def on_trial_end(self, trial: TrialConfig, status: str, reason: str) -> None:
        """See `Live`."""
        run_name = trial.run_name
        last = max(self._evaluations.get(run_name, {}), default=0)
        self._send(
            "end", run_name, {"status": status, "reason": reason, "step": last, "best": self._best_metrics(run_name)}
        )

    def _best_metrics(self, run_name: str) -> dict[str, float] | None:
        """The losses of the best epoch so far, as the table shows them."""
        best = min(self._evaluations.get(run_name, {}).values(), key=lambda one: one.val_loss, default=None)
        if best is None:
            return None
        named = asdict(best)
        return {**{name: named[name] for name in TRACKED_METRICS[:3]}, "best_epoch": best.epoch}

    def _send(self, event: str, run_name: str, payload: Mapping[str, Any]) -> None:
        """Queue an event for every tracker. Events of a run that is not running are dropped.

        A step that is read before its trial ends and arrives after would otherwise begin the run again: its summary
        would be lost and its status would be "interrupted".
        """
        line = json.dumps({"event": event, "run": run_name, **payload}).encode() + b"\n"
        with self._lock:  # the check and the queues: nothing comes between a run's end and what follows
            if event == "begin":
                self._running.add(run_name)
            elif run_name not in self._running:
                return
            elif event == "end":
                self._running.remove(run_name)
            self._has_sent = True
            for process in self._processes:
                process.put(line)


def _local_tracker_folder(storage: Storage, sweep_id: str) -> Path:
    """Where the files of trackers are whose results are in a bucket."""
    return cache.cache_dir(f"trackers/{storage.name}-{sweep_id}")


class TrackerProcess:
    """The process of a tracker, a queue of what it is to be told, and who listens to what it says."""

    def __init__(self, name: str, setup: Mapping[str, Any], notify: Callable[[str], None]) -> None:
        self.name = name
        self._notify = notify
        self._queue: queue.Queue[bytes | None] = queue.Queue(MAX_QUEUED_EVENTS)
        self.num_dropped = 0
        """Events that its process did not take in time."""
        self._closing = False
        self._stderr_file = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "raylm.monitor.trackers.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr_file,
            start_new_session=True,  # Ctrl-C is for the command
        )
        self.put(json.dumps(setup).encode() + b"\n")
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._write_loop, self._read_loop)]
        for thread in self._threads:
            thread.start()

    def put(self, line: bytes) -> None:
        """Has the process told a line, without waiting for it."""
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self.num_dropped += 1

    def close(self) -> None:
        """There is no more to tell."""
        self._closing = True
        with contextlib.suppress(queue.Full):  # it hangs, and will be killed
            self._queue.put_nowait(None)

    def wait(self, deadline: float) -> bool:
        """Whether the process has ended by then, all that it said having been shown."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def kill(self) -> None:
        """Ends it, and what it has started, if it has not ended."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.wait(time.monotonic() + SILENT_WAIT_SECONDS)
        self._stderr_file.close()

    @property
    def has_failed(self) -> bool:
        """Whether it has not come to its end, or not well."""
        return self._process.poll() != 0

    def _write_loop(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # it has died, and `_listen` says so
            while (line := self._queue.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _read_loop(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._notify(f"{self.name}: {line.decode(errors='replace').rstrip()}")
        code = self._process.wait()
        if not self._closing:
            self._notify(
                f"{self.name}: its process ended ({code}){self._last_stderr_line()}; the sweep goes on without it"
            )

    def _last_stderr_line(self) -> str:
        """What it printed last."""
        self._stderr_file.seek(0)
        lines = self._stderr_file.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""
