"""Client of Weights & Biases, online or offline."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Literal

from raylm.monitor.trackers.clients import (
    REQUEST_TIMEOUT_SECONDS,
    Metrics,
    Notify,
    TrackedTrial,
    TrackerSetup,
    format_root_cause,
)
from raylm.results.progress import LOSS_NAMES

INIT_TIMEOUT_SECONDS = 30.0
"""Time limit of wandb for starting a run on a server that answers."""
CHARTED_METRICS = ("loss", *LOSS_NAMES, "tokens_per_second")
"""Metrics that have charts against steps and tokens."""


class WandbTracker:
    """Logs a run per trial, in the group of its sweep. If the server is unreachable or refuses, runs go offline."""

    def __init__(self, setup: TrackerSetup, notify: Notify) -> None:
        import wandb

        settings = wandb.setup().settings  # start its service before trials need the processors
        settings.sweep_id = None  # of a settings file; all trials would be the run of its agent
        self._wandb, self._notify = wandb, notify
        self._sweep, self._folder, self._is_online = setup.sweep, setup.folder, setup.destination == "online"
        self._has_shown_url = False
        self._running: set[str] = set()
        """Names of the runs that are not finished."""
        self._finish_threads: dict[str, threading.Thread] = {}

    def start_trial(self, trial: TrackedTrial) -> Any:
        """Start a run; a run with the same id is resumed."""
        if thread := self._finish_threads.pop(trial.run_name, None):
            thread.join(REQUEST_TIMEOUT_SECONDS)
        if self._is_online:
            try:
                check_server(self._wandb.setup().settings.base_url)
                return self._init_run(trial, "online")
            except (self._wandb.Error, OSError) as error:
                self._is_online = False
                self._notify(f"{format_root_cause(error)}; runs are written offline from now on")
                if not self._running:
                    self._wandb.teardown()  # its service still has the id of the run that it could not start
        return self._init_run(trial, "offline")

    def _init_run(self, trial: TrackedTrial, mode: Literal["online", "offline"]) -> Any:
        settings = self._wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,  # the trial may run on another machine
            x_disable_meta=True,
            init_timeout=INIT_TIMEOUT_SECONDS,
        )
        run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "raylm",
            group=self._sweep,
            name=trial.run_name,
            id=trial.id,
            resume="allow",
            config={**trial.config, "trial_id": trial.trial_id},
            dir=self._folder,
            mode=mode,
            reinit="create_new",
            settings=settings,
        )
        run.define_metric("step", hidden=True)
        run.define_metric("tokens", hidden=True)
        for name in CHARTED_METRICS:
            run.define_metric(name, step_metric="step", summary="none")
            run.define_metric(f"by_tokens/{name}", step_metric="tokens", summary="none")
        if mode == "online" and not self._has_shown_url:
            self._has_shown_url = True
            self._notify(f"{run.project_url}/groups/{urllib.parse.quote(self._sweep)}")
        self._running.add(trial.run_name)
        return run

    def log_metrics(self, handle: Any, step: int, tokens_seen: int, metrics: Metrics) -> None:
        """Log a row of the history; wandb counts rows by itself, also in a resumed run."""
        by_tokens = {f"by_tokens/{name}": value for name, value in metrics.items()}
        handle.log({"step": step, "tokens": tokens_seen, **metrics, **by_tokens})

    def log_best(self, handle: Any, step: int, metrics: Metrics) -> None:
        """Update the summary of the run."""
        handle.summary.update(dict(metrics))

    def end_trial(self, handle: Any, status: str, reason: str) -> None:
        """Finish the run in a thread, while events of other trials are handled."""
        handle.summary.update({"status": status, "reason": reason})
        thread = threading.Thread(target=self._finish_run, args=(handle, int(status == "failed")), daemon=True)
        thread.start()
        self._finish_threads[handle.name] = thread

    def _finish_run(self, handle: Any, exit_code: int) -> None:
        try:
            handle.finish(exit_code)
        except Exception as error:  # of any class, for example if wandb's service has died
            self._notify(f"{handle.name}: {format_root_cause(error)}; its files are in {self._folder}/wandb")
        self._running.discard(handle.name)

    def close(self) -> None:
        """Wait until all runs are finished."""
        for thread in self._finish_threads.values():
            thread.join()
        self._wandb.teardown()  # only then its service has written the file of the last run


def check_server(url: str) -> None:
    """Check that a server answers, with any status below 500.

    Raises:
        OSError: if it does not.
    """
    try:
        urllib.request.urlopen(url, timeout=REQUEST_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise
