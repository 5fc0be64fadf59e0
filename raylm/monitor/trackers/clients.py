"""Clients of experiment trackers. Each imports its library when it is created, in the tracker's process."""

from __future__ import annotations

import contextvars
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from raylm.results.progress import LOSS_NAMES

REQUEST_TIMEOUT_SECONDS = 5.0
"""Time limit for the first response of a server."""

Metrics = Mapping[str, float]
Notify = Callable[[str], None]
"""Shows a line of text to the user."""


@dataclass(frozen=True)
class TrackerSetup:
    """Settings of a tracker for one launch."""

    sweep: str
    """Name of the sweep."""
    folder: str
    """Folder for files, on this machine."""
    grace_seconds: float
    """Time for the remaining events after the launch."""
    destination: str = ""
    """Mode of wandb, URI or folder of MLflow, project of trackio."""


@dataclass(frozen=True)
class TrackedTrial:
    """A trial for trackers."""

    run_name: str
    id: str
    """Id of the tracker's run: equal in all launches on one results folder."""
    trial_id: str
    config: Mapping[str, Any]
    """Fields of the trial by name."""


class Tracker(Protocol):
    """Sends the metrics of trials to one experiment tracker. A handle stands for a tracked trial."""

    def start_trial(self, trial: TrackedTrial) -> Any:
        """Start a run for the trial, or resume its run of an earlier launch; return its handle."""

    def log_metrics(self, handle: Any, step: int, tokens_seen: int, metrics: Metrics) -> None:
        """Log metrics of a trial after an optimizer step.

        Args:
            handle: handle of the trial.
            step: optimizer steps done.
            tokens_seen: tokens trained on.
            metrics: values by name; `loss` is the training loss of a single step, `LOSS_NAMES` are of an evaluation.
        """

    def log_best(self, handle: Any, step: int, metrics: Metrics) -> None:
        """Log `LOSS_NAMES` of the best epoch so far, and `best_epoch`."""

    def end_trial(self, handle: Any, status: str, reason: str) -> None:
        """End the run of a trial that is done, failed, paused, ..."""

    def close(self) -> None:
        """Send what is left; return when all of it has arrived."""


# ---- TensorBoard --------------------------------------------------------------------------------------------------


@dataclass
class TensorBoardRun:
    """Writer of a trial. It is created with the first metrics, as only they tell the first step to overwrite."""

    trial: TrackedTrial
    writer: Any = None


class TensorBoardTracker:
    """Writes a folder of event files per trial, with its fields and best losses for the HParams view."""

    def __init__(self, setup: TrackerSetup, notify: Notify) -> None:
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # tensorboardX would import it, for seconds
        import tensorboardX
        from tensorboardX import summary

        self._module, self._hparams, self._folder = tensorboardX, summary.hparams, Path(setup.folder) / "tensorboard"

    def start_trial(self, trial: TrackedTrial) -> TensorBoardRun:
        """Return a run without a writer."""
        return TensorBoardRun(trial)

    def _get_writer(self, handle: TensorBoardRun, step: int) -> Any:
        if handle.writer is None:
            folder = self._folder / handle.trial.run_name
            if folder.is_symlink():
                raise OSError(f"{folder} is a link, which is not followed")
            suffix = f".{os.getpid()}"  # the file name has a time in seconds, which two launches may share
            handle.writer = self._module.SummaryWriter(
                str(folder), purge_step=step, flush_secs=5, filename_suffix=suffix
            )
            experiment, session_start, _ = self._hparams_summaries(handle.trial)
            handle.writer.file_writer.add_summary(experiment)
            handle.writer.file_writer.add_summary(session_start)
        return handle.writer

    def _hparams_summaries(self, trial: TrackedTrial) -> Any:
        """Return experiment, start and end of a session. Every trial has all fields, so one experiment fits all."""
        fields = {name: "none" if value is None else value for name, value in trial.config.items()}
        return self._hparams(fields, {f"best/{name}": 0.0 for name in LOSS_NAMES})  # only these names are written

    def log_metrics(self, handle: TensorBoardRun, step: int, tokens_seen: int, metrics: Metrics) -> None:
        """Write scalars against the optimizer step."""
        for name, value in {**metrics, "tokens": tokens_seen}.items():
            self._get_writer(handle, step).add_scalar(name, value, step)

    def log_best(self, handle: TensorBoardRun, step: int, metrics: Metrics) -> None:
        """Write the scalars of the HParams view."""
        for name in LOSS_NAMES:
            self._get_writer(handle, step).add_scalar(f"best/{name}", metrics[name], step)

    def end_trial(self, handle: TensorBoardRun, status: str, reason: str) -> None:
        """Close the trial's file."""
        if handle.writer is not None:
            handle.writer.file_writer.add_summary(self._hparams_summaries(handle.trial)[2])
            handle.writer.close()

    def close(self) -> None:
        """Do nothing: all files are closed."""


# ---- MLflow -------------------------------------------------------------------------------------------------------


@dataclass
class MLflowRun:
    """A run and its metrics that are not sent yet."""

    id: str
    metrics: list[Any] = field(default_factory=list)
    flushed_at: float = field(default_factory=time.monotonic)


class MLflowTracker:
    """Logs a run per trial, in the experiment of its sweep."""

    RUN_STATUSES: Mapping[str, str] = {
        "done": "FINISHED",
        "stopped": "FINISHED",
        "failed": "FAILED",
        "diverged": "FAILED",
    }
    """MLflow's status by the status of a trial; any other is KILLED."""
    FLUSH_SECONDS = 2.0
    MAX_BATCH_SIZE = 500
    """Metrics per request: half of MLflow's limit."""

    def __init__(self, setup: TrackerSetup, notify: Notify) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", f"{REQUEST_TIMEOUT_SECONDS:.0f}")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow import MlflowClient, entities

        self._entities, self._sweep, uri = entities, setup.sweep, setup.destination
        if "://" not in uri:
            Path(uri).mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{Path(uri).resolve()}/mlflow.db"
        self._client, self._experiment_id = MlflowClient(tracking_uri=uri), ""

    def start_trial(self, trial: TrackedTrial) -> MLflowRun:
        """Resume the run that is tagged with the trial's id, or create one."""
        if not self._experiment_id:
            experiment = self._client.get_experiment_by_name(self._sweep)
            self._experiment_id = (
                experiment.experiment_id if experiment else self._client.create_experiment(self._sweep)
            )
        if runs := self._client.search_runs([self._experiment_id], f"tags.`raylm.id` = '{trial.id}'"):
            run_id = runs[0].info.run_id
            self._client.update_run(run_id, status="RUNNING")
        else:
            tags = {"raylm.id": trial.id, "raylm.trial_id": trial.trial_id}
            run_id = self._client.create_run(self._experiment_id, run_name=trial.run_name, tags=tags).info.run_id
            params = [self._entities.Param(name, str(value)) for name, value in trial.config.items()]
            self._client.log_batch(run_id, params=params)
        return MLflowRun(run_id)

    def log_metrics(self, handle: MLflowRun, step: int, tokens_seen: int, metrics: Metrics) -> None:
        """Log metrics against the optimizer step."""
        self._buffer(handle, step, {**metrics, "tokens": tokens_seen})

    def log_best(self, handle: MLflowRun, step: int, metrics: Metrics) -> None:
        """Log metrics with the prefix `best_`."""
        self._buffer(handle, step, {f"best_{name.removeprefix('best_')}": value for name, value in metrics.items()})

    def _buffer(self, handle: MLflowRun, step: int, metrics: Metrics) -> None:
        now_ms = int(time.time() * 1000)
        handle.metrics += [self._entities.Metric(name, value, now_ms, step) for name, value in metrics.items()]
        is_due = time.monotonic() - handle.flushed_at > self.FLUSH_SECONDS
        if is_due or len(handle.metrics) > self.MAX_BATCH_SIZE:
            self._flush(handle)

    def _flush(self, handle: MLflowRun, **kwargs: Any) -> None:
        handle.flushed_at = time.monotonic()
        metrics = handle.metrics[-self.MAX_BATCH_SIZE :]  # after an outage, only the latest
        self._client.log_batch(handle.id, metrics=metrics, **kwargs)
        handle.metrics = []

    def end_trial(self, handle: MLflowRun, status: str, reason: str) -> None:
        """Send the remaining metrics, status and reason."""
        tags = {"raylm.status": status, **({"raylm.reason": reason} if reason else {})}
        self._flush(handle, tags=[self._entities.RunTag(name, value) for name, value in tags.items()])
        self._client.set_terminated(handle.id, self.RUN_STATUSES.get(status, "KILLED"))

    def close(self) -> None:
        """Do nothing: all runs are sent."""


# ---- trackio ------------------------------------------------------------------------------------------------------


class TrackioTracker:
    """Logs a run per trial, in the group of its sweep."""

    def __init__(self, setup: TrackerSetup, notify: Notify) -> None:
        import trackio

        self._init, self._project, self._sweep = trackio.init, setup.destination, setup.sweep

    def start_trial(self, trial: TrackedTrial) -> Any:
        """Start or resume a run. trackio identifies runs by name only, so the name ends with the folder's id."""
        options = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False, "resume": "allow"}
        name = f"{trial.run_name}-{trial.id.rpartition('-')[2]}"
        # in a context of its own: trackio ends the current context's run
        return contextvars.Context().run(
            lambda: self._init(self._project, name=name, group=self._sweep, config=trial.config, **options)
        )

    def log_metrics(self, handle: Any, step: int, tokens_seen: int, metrics: Metrics) -> None:
        """Log metrics against the optimizer step."""
        handle.log({**metrics, "tokens": tokens_seen}, step=step)

    def log_best(self, handle: Any, step: int, metrics: Metrics) -> None:
        """Log metrics with the prefix `best/`."""
        handle.log({f"best/{name.removeprefix('best_')}": value for name, value in metrics.items()}, step=step)

    def end_trial(self, handle: Any, status: str, reason: str) -> None:
        """Write the remaining metrics."""
        handle.finish()

    def close(self) -> None:
        """Do nothing: all runs are written."""


def format_root_cause(error: BaseException) -> str:
    """Return the first cause of an error as one line, without the many lines that some clients add to it."""
    cause: BaseException | None = error
    while cause is not None:
        error, cause = cause, cause.__cause__ or cause.__context__
    reason = getattr(error, "reason", None)  # urllib's
    return " ".join(f"{reason or error}".split())[:200] or type(error).__name__
