"""Trials as runs of Weights & Biases, online or offline."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, Literal

from raylm.monitor.trackers.clients import LOSSES, REQUEST_TIMEOUT_SECONDS, Metrics, Notify, format_root_cause

INIT_TIMEOUT_SECONDS = 30.0
"""How long wandb may take to begin a run on a server that answers."""
CHARTED_METRICS = ("loss", *LOSSES, "tokens_per_second")
"""What is drawn while a trial runs."""


class WandbTracker:
    """A run per trial, in the group of its sweep. Where the server is away or refuses, runs are written offline."""

    def __init__(self, setup: Mapping[str, Any], notify: Notify) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        wandb.setup()  # its service starts before there are trials that need the processors
        self._wandb, self._notify = wandb, notify
        self._sweep, self._folder, self._online = setup["sweep"], setup["folder"], setup["mode"] == "online"
        self._url_shown = False
        self._running: set[str] = set()
        self._finish_threads: dict[str, threading.Thread] = {}

    def start_trial(self, trial: Mapping[str, Any]) -> Any:
        """One run; a second one with its id is the same one, going on."""
        if finishing := self._finish_threads.pop(trial["run"], None):
            finishing.join(REQUEST_TIMEOUT_SECONDS)
        if self._online:
            try:
                check_server(self._wandb.setup().settings.base_url)
                return self._init_run(trial, "online")
            except (self._wandb.Error, OSError) as error:
                self._online = False
                self._notify(f"{format_root_cause(error)}; runs are written offline from here on")
                if not self._running:
                    self._wandb.teardown()  # its service holds the id of a run that it could not begin
        return self._init_run(trial, "offline")

    def _init_run(self, trial: Mapping[str, Any], mode: Literal["online", "offline"]) -> Any:
        settings = self._wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,  # of this machine, which need not be the trial's
            x_disable_meta=True,
            init_timeout=INIT_TIMEOUT_SECONDS,
        )
        run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "raylm",
            group=self._sweep,
            name=trial["run"],
            id=trial["id"],
            resume="allow",
            config={**trial["config"], "trial_id": trial["trial_id"]},
            dir=self._folder,
            mode=mode,
            reinit="create_new",
            settings=settings,
        )
        run.define_metric("step", hidden=True)
        run.define_metric("tokens", hidden=True)
        for name in CHARTED_METRICS:  # each against both
            run.define_metric(name, step_metric="step", summary="none")
            run.define_metric(f"by_tokens/{name}", step_metric="tokens", summary="none")
        if mode == "online" and not self._url_shown:
            self._url_shown = True
            self._notify(f"{run.project_url}/groups/{urllib.parse.quote(self._sweep)}")
        self._running.add(trial["run"])
        return run

    def log_metrics(self, handle: Any, step: int, tokens_seen: int, metrics: Metrics) -> None:
        """A row of the history; wandb's own count of rows goes on where a run is resumed."""
        by_tokens = {f"by_tokens/{name}": value for name, value in metrics.items()}
        handle.log({"step": step, "tokens": tokens_seen, **metrics, **by_tokens})

    def log_best(self, handle: Any, step: int, metrics: Metrics) -> None:
        """The run's summary."""
        handle.summary.update(dict(metrics))

    def end_trial(self, handle: Any, status: str, reason: str) -> None:
        """The rest is brought away beside what the other trials tell."""
        handle.summary.update({"status": status, "reason": reason})
        finishing = threading.Thread(target=self._finish_run, args=(handle, int(status == "failed")), daemon=True)
        finishing.start()
        self._finish_threads[handle.name] = finishing

    def _finish_run(self, handle: Any, exit_code: int) -> None:
        try:
            handle.finish(exit_code)
        except Exception as error:  # of whatever class; its service may have died
            self._notify(f"{handle.name}: {format_root_cause(error)}; what it has is in {self._folder}/wandb")
        self._running.discard(handle.name)

    def close(self) -> None:
        """Waits until all of it has arrived."""
        for finishing in self._finish_threads.values():
            finishing.join()
        self._wandb.teardown()  # only then its service has written the last run's file


def check_server(url: str) -> None:
    """Returns when a server answers, whatever it says.

    Raises:
        OSError: if it does not.
    """
    try:
        urllib.request.urlopen(url, timeout=REQUEST_TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise
