"""Trials as runs of Weights & Biases, online or offline."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, Literal

from raylm.monitor.trackers.clients import LOSSES, PATIENCE_SECONDS, Say, Values, in_a_line

INIT_SECONDS = 30.0
"""How long wandb may take to begin a run on a server that answers."""
LIVE = ("loss", *LOSSES, "tokens_per_second")
"""What is drawn while a trial runs."""


class Wandb:
    """A run per trial, in the group of its sweep. Where the server is away or refuses, runs are written offline."""

    def __init__(self, setup: Mapping[str, Any], say: Say) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        wandb.setup()  # its service starts before there are trials that need the processors
        self._wandb, self._say = wandb, say
        self._sweep, self._folder, self._online = setup["sweep"], setup["folder"], setup["mode"] == "online"
        self._address_said = False
        self._running: set[str] = set()
        self._finishing: dict[str, threading.Thread] = {}

    def begin(self, trial: Mapping[str, Any]) -> Any:
        """One run; a second one with its id is the same one, going on."""
        if finishing := self._finishing.pop(trial["run"], None):
            finishing.join(PATIENCE_SECONDS)
        if self._online:
            try:
                answers(self._wandb.setup().settings.base_url)
                return self._run(trial, "online")
            except (self._wandb.Error, OSError) as error:
                self._online = False
                self._say(f"{in_a_line(error)}; runs are written offline from here on")
                if not self._running:
                    self._wandb.teardown()  # its service holds the id of a run that it could not begin
        return self._run(trial, "offline")

    def _run(self, trial: Mapping[str, Any], mode: Literal["online", "offline"]) -> Any:
        settings = self._wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            save_code=False,
            x_disable_stats=True,  # of this machine, which need not be the trial's
            x_disable_meta=True,
            init_timeout=INIT_SECONDS,
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
        for name in LIVE:  # each against both
            run.define_metric(name, step_metric="step", summary="none")
            run.define_metric(f"by_tokens/{name}", step_metric="tokens", summary="none")
        if mode == "online" and not self._address_said:
            self._address_said = True
            self._say(f"{run.project_url}/groups/{urllib.parse.quote(self._sweep)}")
        self._running.add(trial["run"])
        return run

    def log(self, handle: Any, step: int, tokens: int, values: Values) -> None:
        """A row of the history; wandb's own count of rows goes on where a run is resumed."""
        by_tokens = {f"by_tokens/{name}": value for name, value in values.items()}
        handle.log({"step": step, "tokens": tokens, **values, **by_tokens})

    def best(self, handle: Any, step: int, best: Values) -> None:
        """The run's summary."""
        handle.summary.update(dict(best))

    def end(self, handle: Any, status: str, reason: str) -> None:
        """The rest is brought away beside what the other trials tell."""
        handle.summary.update({"status": status, "reason": reason})
        finishing = threading.Thread(target=self._finish, args=(handle, int(status == "failed")), daemon=True)
        finishing.start()
        self._finishing[handle.name] = finishing

    def _finish(self, handle: Any, exit_code: int) -> None:
        try:
            handle.finish(exit_code)
        except Exception as error:  # of whatever class; its service may have died
            self._say(f"{handle.name}: {in_a_line(error)}; what it has is in {self._folder}/wandb")
        self._running.discard(handle.name)

    def close(self) -> None:
        """Waits until all of it has arrived."""
        for finishing in self._finishing.values():
            finishing.join()
        self._wandb.teardown()  # only then its service has written the last run's file


def answers(url: str) -> None:
    """Returns when a server answers, whatever it says.

    Raises:
        OSError: if it does not.
    """
    try:
        urllib.request.urlopen(url, timeout=PATIENCE_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise
