"""Experiment trackers: what each does with a trial's numbers. No client is imported before its tracker is made."""

from __future__ import annotations

import contextvars
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

Metrics = Mapping[str, float]

LOSSES = ("train_loss", "val_loss", "adj_val_loss")
"""Of an evaluation; `loss` is the training loss of a single step."""
REQUEST_TIMEOUT_SECONDS = 5.0
"""How long a server may take for its first answer."""


class Tracker(Protocol):
    """What is done with a trial's numbers. A handle stands for a trial that is being tracked."""

    def start_trial(self, trial: Mapping[str, Any]) -> Any:
        """Begins to track a trial, or goes on where it was tracked before; gives its handle.

        Args:
            trial: `run`, its name; `id`, the same whenever the trial goes on; `trial_id`; `config`, its fields by name.
        """

    def log_metrics(self, handle: Any, step: int, tokens_seen: int, metrics: Metrics) -> None:
        """Numbers of a trial after so many optimizer steps and tokens."""

    def log_best(self, handle: Any, step: int, metrics: Metrics) -> None:
        """The losses of the best epoch so far, and which it is."""

    def end_trial(self, handle: Any, status: str, reason: str) -> None:
        """The trial is done, failed, paused, ..."""

    def close(self) -> None:
        """No more comes; returns when all has arrived."""


Notify = Callable[[str], None]
"""Tells the user something, in a line."""


# ---- TensorBoard --------------------------------------------------------------------------------------------------


class TensorBoardTracker:
    """A folder of event files per trial, with its fields and best losses for the HParams view."""

    def __init__(self, setup: Mapping[str, Any], notify: Notify) -> None:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # tensorboardX would import it, for seconds
        import tensorboardX
        from tensorboardX import summary

        self._module, self._hparams, self._folder = tensorboardX, summary.hparams, Path(setup["folder"]) / "tensorboard"

    def start_trial(self, trial: Mapping[str, Any]) -> dict[str, Any]:
        """The writer is made with the first numbers: what an earlier launch wrote from there on is superseded."""
        return {**trial, "writer": None}

    def _get_writer(self, handle: Any, step: int) -> Any:
        if handle["writer"] is None:
            folder = self._folder / handle["run"]
            if folder.is_symlink():
                raise OSError(f"{folder} is a link, which is not followed")
            suffix = f".{os.getpid()}"  # a file's name has its second, which two launches may share
            writer = handle["writer"] = self._module.SummaryWriter(
                str(folder), purge_step=step, flush_secs=5, filename_suffix=suffix
            )
            for one in self._hparams_summaries(handle)[:2]:  # what the experiment is, and that this trial begins
                writer.file_writer.add_summary(one)
        return handle["writer"]

    def _hparams_summaries(self, handle: Any) -> Any:
        # one trial's experiment stands for all: each names every field
        fields = {name: "none" if value is None else value for name, value in handle["config"].items()}
        return self._hparams(fields, {f"best/{name}": 0.0 for name in LOSSES})  # its names alone are written

    def log_metrics(self, handle: Any, step: int, tokens_seen: int, metrics: Metrics) -> None:
        """Scalars against the optimizer step."""
        for name, value in {**metrics, "tokens": tokens_seen}.items():
            self._get_writer(handle, step).add_scalar(name, value, step)

    def log_best(self, handle: Any, step: int, metrics: Metrics) -> None:
        """Scalars of their own, which the HParams view reads."""
        for name in LOSSES:
            self._get_writer(handle, step).add_scalar(f"best/{name}", metrics[name], step)

    def end_trial(self, handle: Any, status: str, reason: str) -> None:
        """Closes its file."""
        if handle["writer"] is not None:
            handle["writer"].file_writer.add_summary(self._hparams_summaries(handle)[2])
            handle["writer"].close()

    def close(self) -> None:
        """There is nothing on its way."""


# ---- MLflow -------------------------------------------------------------------------------------------------------


class MLflowTracker:
    """A run per trial, in the experiment of its sweep."""

    RUN_STATUSES: Mapping[str, str] = {
        "done": "FINISHED",
        "stopped": "FINISHED",
        "failed": "FAILED",
        "diverged": "FAILED",
    }
    FLUSH_SECONDS = 2.0
    MAX_BATCH_SIZE = 500
    """Half of what MLflow takes at a time."""

    def __init__(self, setup: Mapping[str, Any], notify: Notify) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{REQUEST_TIMEOUT_SECONDS:.0f}")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient, entities

        self._entities, self._sweep = entities, setup["sweep"]
        place = setup["place"]
        if "://" not in place:
            Path(place).mkdir(parents=True, exist_ok=True)
            place = f"sqlite:///{Path(place).resolve()}/mlflow.db"
        self._client, self._experiment = MlflowClient(tracking_uri=place), ""

    def start_trial(self, trial: Mapping[str, Any]) -> dict[str, Any]:
        """The run with the trial's id, or a new one."""
        if not self._experiment:
            known = self._client.get_experiment_by_name(self._sweep)
            self._experiment = known.experiment_id if known else self._client.create_experiment(self._sweep)
        found = self._client.search_runs([self._experiment], f"tags.`raylm.id` = '{trial['id']}'")
        if found:
            run = found[0].info.run_id
            self._client.update_run(run, status="RUNNING")
        else:
            tags = {"raylm.id": trial["id"], "raylm.trial_id": trial["trial_id"]}
            run = self._client.create_run(self._experiment, run_name=trial["run"], tags=tags).info.run_id
            params = [self._entities.Param(name, str(value)) for name, value in trial["config"].items()]
            self._client.log_batch(run, params=params)
        return {"run": run, "metrics": [], "sent": time.monotonic()}

    def log_metrics(self, handle: Any, step: int, tokens_seen: int, metrics: Metrics) -> None:
        """Metrics against the optimizer step."""
        self._buffer(handle, step, {**metrics, "tokens": tokens_seen})

    def log_best(self, handle: Any, step: int, metrics: Metrics) -> None:
        """Metrics of their own."""
        self._buffer(handle, step, {f"best_{name.removeprefix('best_')}": value for name, value in metrics.items()})

    def _buffer(self, handle: Any, step: int, metrics: Metrics) -> None:
        now = int(time.time() * 1000)
        handle["metrics"] += [self._entities.Metric(name, value, now, step) for name, value in metrics.items()]
        late = time.monotonic() - handle["sent"] > self.FLUSH_SECONDS
        if late or len(handle["metrics"]) > self.MAX_BATCH_SIZE:
            self._flush(handle)

    def _flush(self, handle: Any, **kwargs: Any) -> None:
        handle["sent"] = time.monotonic()
        metrics = handle["metrics"][-self.MAX_BATCH_SIZE :]  # what an outage has left
        self._client.log_batch(handle["run"], metrics=metrics, **kwargs)
        handle["metrics"] = []

    def end_trial(self, handle: Any, status: str, reason: str) -> None:
        """What is left, its status, and why."""
        tags = {"raylm.status": status, **({"raylm.reason": reason} if reason else {})}
        self._flush(handle, tags=[self._entities.RunTag(name, value) for name, value in tags.items()])
        self._client.set_terminated(handle["run"], self.RUN_STATUSES.get(status, "KILLED"))

    def close(self) -> None:
        """There is nothing on its way."""


# ---- trackio ------------------------------------------------------------------------------------------------------


class TrackioTracker:
    """A run per trial, in the group of its sweep."""

    def __init__(self, setup: Mapping[str, Any], notify: Notify) -> None:
        import trackio

        self._init, self._project, self._sweep = trackio.init, setup["place"], setup["sweep"]

    def start_trial(self, trial: Mapping[str, Any]) -> Any:
        """One run; trackio knows runs by their names alone, so that this one has the id in its name."""
        options = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False, "resume": "allow"}
        # in a context of its own, since trackio ends the run that the current context has
        return contextvars.Context().run(
            lambda: self._init(
                self._project,
                name=f"{trial['run']}-{trial['id'].rpartition('-')[2]}",
                group=self._sweep,
                config=trial["config"],
                **options,
            )
        )

    def log_metrics(self, handle: Any, step: int, tokens_seen: int, metrics: Metrics) -> None:
        """Metrics against the optimizer step."""
        handle.log({**metrics, "tokens": tokens_seen}, step=step)

    def log_best(self, handle: Any, step: int, metrics: Metrics) -> None:
        """Metrics of their own."""
        handle.log({f"best/{name.removeprefix('best_')}": value for name, value in metrics.items()}, step=step)

    def end_trial(self, handle: Any, status: str, reason: str) -> None:
        """Writes the rest."""
        handle.finish()

    def close(self) -> None:
        """There is nothing on its way."""


def format_root_cause(error: BaseException) -> str:
    """What went wrong in the end, without the many lines that some clients make of it."""
    cause: BaseException | None = error
    while cause is not None:
        error, cause = cause, cause.__cause__ or cause.__context__
    reason = getattr(error, "reason", None)  # urllib's
    return " ".join(f"{reason or error}".split())[:200] or type(error).__name__
