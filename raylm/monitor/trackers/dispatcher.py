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
from raylm.monitor.trackers.options import Trackers
from raylm.results.progress import Measured, Step
from raylm.results.rows import Row
from raylm.results.storage import Folder, Storage

MOST_WAITING = 10_000
"""Events that wait for a tracker's process; those beyond are lost to it."""
QUIET_SECONDS = 1.0
"""After this time it is said what is waited for."""
GRACE_SECONDS = 20.0
"""In the end, what is on its way to trackers has so long to arrive."""
RECORDED = ("train_loss", "val_loss", "adj_val_loss", "tokens_per_second")
"""Numbers of an evaluation that are tracked."""


class Tracking:
    """Tells trackers what happens to trials, as `Live` is told of it. Used as a context."""

    def __init__(
        self,
        trackers: Trackers,
        folder: Storage,
        identity: str,
        rows: Sequence[Row],
        say: Callable[[str], None],
    ) -> None:
        """For one launch.

        Args:
            identity: of the results folder: a trial that goes on in it is the same run for a tracker.
            rows: how the sweep stands.
            say: shows a note.
        """
        self.identity, self._say = identity, say
        self._elsewhere = not isinstance(folder, Folder)
        self._folder = folder.path.resolve() if isinstance(folder, Folder) else _beside(folder, identity)
        self._trials = {row.config.run_name: row.config for row in rows}
        self._more: Sequence[TrialConfig] = ()
        self._evaluations = {row.config.run_name: {one.step: one for one in row.evaluations} for row in rows}
        self._steps: dict[str, Step] = {}
        setup = {"sweep": folder.name, "folder": str(self._folder), "grace_seconds": GRACE_SECONDS}
        self._setups: dict[str, Mapping[str, Any]] = {"tensorboard": setup}
        if trackers.wandb != "disabled":
            self._setups["wandb"] = {**setup, "mode": trackers.wandb}
        for name, place in (("mlflow", trackers.mlflow), ("trackio", trackers.trackio)):
            if place is not None:
                self._setups[name] = {**setup, "place": place}
        self._open: list[Piped] = []
        self._told = False

    def __enter__(self) -> Tracking:
        """Starts the trackers' processes."""
        if self._elsewhere:
            self._say(f"trackers: their files are on this machine, in {self._folder}")
        for name, setup in self._setups.items():
            if (self._folder / name).is_symlink():
                self._say(f"{name}: {self._folder / name} is a link, which is not followed; nothing is tracked there")
                continue
            try:
                self._open.append(Piped(name, setup, self._say))
            except OSError as error:  # no more processes, no room
                self._say(f"{name}: {error.strerror}; the sweep goes on without it")
        return self

    def __exit__(self, *exception: object) -> None:
        """Gives what is on its way some seconds, then ends the processes; where there is nothing, at once."""
        try:
            self.close()
            if not self._told:
                return
            deadline = time.monotonic() + QUIET_SECONDS
            left = [one for one in self._open if not one.ended(deadline)]
            if left:
                self._say(f"waiting for {', '.join(one.name for one in left)}: {GRACE_SECONDS:.0f} s at most")
            deadline += GRACE_SECONDS
            for one in self._open:
                if not one.ended(deadline):
                    self._say(f"{one.name}: not finished after {GRACE_SECONDS:.0f} s; what was on its way may be lost")
                if one.lost:
                    self._say(f"{one.name}: {one.lost:,} events were not taken in time")
            if "wandb" in self._setups and self._unsynced():
                self._say(
                    f"wandb: wandb sync --include-online {self._folder}/wandb/*run-* brings the rest to the server"
                )
        finally:
            for one in self._open:
                one.kill()

    def close(self) -> None:
        """There is no more to tell."""
        for one in self._open:
            one.close()

    def _unsynced(self) -> bool:
        """Whether there are runs on this machine that the server may not have."""
        runs = list((self._folder / "wandb").glob("*run-*/*.wandb"))
        online = any(one.name == "wandb" and one.failed for one in self._open)
        return any(
            not run.with_name(f"{run.name}.synced").exists() and (online or run.parent.name.startswith("offline"))
            for run in runs
        )

    def follow(self, trials: Sequence[TrialConfig]) -> None:
        """Trials that are not known yet are in this list, or will be when they begin."""
        self._more = trials

    # ---- what Live tells ------------------------------------------------------------------------------------------

    def started(self, run: str) -> None:
        """See `Live`."""
        self._trials.update((one.run_name, one) for one in self._more if run not in self._trials)
        trial = self._trials[run]
        config = {"id": f"{trial.id}-{self.identity}", "trial_id": trial.id, "config": trial.as_dict()}
        self._tell("begin", run, config)

    def stepped(self, run: str, step: Step) -> None:
        """See `Live`."""
        if step != self._steps.get(run):
            self._steps[run] = step
            values = {"loss": step.loss, "tokens_per_second": step.tokens_per_second}
            self._tell("numbers", run, {"step": step.step, "tokens": step.tokens_seen, "values": values})

    def evaluated(self, run: str, metrics: Mapping[str, Any]) -> None:
        """See `Live`."""
        values = {name: metrics[name] for name in RECORDED if name in metrics}
        if {"train_loss", "val_loss", "adj_val_loss"} <= values.keys():
            losses = [values[name] for name in RECORDED[:3]]
            measured = Measured(metrics["epoch"], metrics["step"], metrics["tokens_seen"], *losses)
            self._evaluations.setdefault(run, {})[measured.step] = measured
        told = {"step": metrics["step"], "tokens": metrics["tokens_seen"], "values": values, "best": self._best(run)}
        self._tell("numbers", run, told)

    def retried(self, run: str, reason: str) -> None:
        """See `Live`."""

    def ended(self, run: str, status: str, reason: str) -> None:
        """See `Live`."""
        last = max(self._evaluations.get(run, {}), default=0)
        self._tell("end", run, {"status": status, "reason": reason, "step": last, "best": self._best(run)})

    def pausing(self, reason: str) -> None:
        """See `Live`."""

    def _best(self, run: str) -> dict[str, float] | None:
        """The losses of the best epoch so far, as the table shows them."""
        best = min(self._evaluations.get(run, {}).values(), key=lambda one: one.val_loss, default=None)
        if best is None:
            return None
        named = asdict(best)
        return {**{name: named[name] for name in RECORDED[:3]}, "best_epoch": best.epoch}

    def _tell(self, event: str, run: str, what: Mapping[str, Any]) -> None:
        self._told = True
        line = json.dumps({"event": event, "run": run, **what}).encode() + b"\n"
        for one in self._open:
            one.put(line)


def _beside(folder: Storage, identity: str) -> Path:
    """Where the files of trackers are whose results are in a bucket."""
    return cache.part(f"trackers/{folder.name}-{identity}")


class Piped:
    """The process of a tracker, a queue of what it is to be told, and who listens to what it says."""

    def __init__(self, name: str, setup: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self.name = name
        self._say = say
        self._waiting: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self.lost = 0
        """Events that its process did not take in time."""
        self._closing = False
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "raylm.monitor.trackers.worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            start_new_session=True,  # Ctrl-C is for the command
        )
        self.put(json.dumps(setup).encode() + b"\n")
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._write, self._listen)]
        for thread in self._threads:
            thread.start()

    def put(self, line: bytes) -> None:
        """Has the process told a line, without waiting for it."""
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """There is no more to tell."""
        self._closing = True
        with contextlib.suppress(queue.Full):  # it hangs, and will be killed
            self._waiting.put_nowait(None)

    def ended(self, deadline: float) -> bool:
        """Whether the process has ended by then, all that it said having been shown."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def kill(self) -> None:
        """Ends it, and what it has started, if it has not ended."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self.ended(time.monotonic() + QUIET_SECONDS)
        self._printed.close()

    @property
    def failed(self) -> bool:
        """Whether it has not come to its end, or not well."""
        return self._process.poll() != 0

    def _write(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as pipe:  # it has died, and `_listen` says so
            while (line := self._waiting.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._say(f"{self.name}: {line.decode(errors='replace').rstrip()}")
        code = self._process.wait()
        if not self._closing:
            self._say(f"{self.name}: its process ended ({code}){self._last_words()}; the sweep goes on without it")

    def _last_words(self) -> str:
        """What it printed last."""
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1][:200]}" if lines else ""
