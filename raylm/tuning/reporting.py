"""Reports of a trial: evaluations and checkpoints to Ray Tune, steps to the coordinator, gauges to Prometheus.

A checkpoint is completed and uploaded in a thread while training continues.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
import torch
from ray import tune
from ray.util.metrics import Gauge

from raylm.results.progress import StepMetrics
from raylm.stages import process_started_at
from raylm.training.device import machine_bytes_in_use
from raylm.tuning.coordinator import CHECKPOINT_SECONDS, REPORT_SECONDS, Command

Metrics = Mapping[str, float]


class AsyncReporter:
    """Reports evaluations to Tune in order, in a thread. Used as a context, whose end waits for the last report.

    Tune ends a trial by raising SystemExit in the thread that reports. That and any other error of saving or reporting
    is raised again in the trial's own thread, by the next `raise_if_failed` or `wait`.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="reporter")
        self._pending: Future[None] | None = None

    def __enter__(self) -> AsyncReporter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True)  # a started upload is finished, even after an error
        if exc is None:
            self.wait()

    def submit(self, metrics: Metrics, start_saving: Callable[[Path], Callable[[], None]]) -> None:
        """Start to save a checkpoint into a temporary folder; complete and report it in the background.

        Args:
            start_saving: saves into an empty folder as far as the trial has to wait; returns what completes it.
        """
        self.wait()
        folder = tempfile.TemporaryDirectory()
        try:
            complete = start_saving(Path(folder.name))
            self._pending = self._executor.submit(_report_to_tune, metrics, folder, complete)
        except BaseException:
            folder.cleanup()
            raise

    def raise_if_failed(self) -> None:
        """Raise the error of a report that has failed; return at once otherwise."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the pending report, and raise its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _report_to_tune(metrics: Metrics, folder: tempfile.TemporaryDirectory[str], complete: Callable[[], None]) -> None:
    with folder as path:
        complete()
        tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(path))


class CoordinatorClient:
    """Trial-side client of the coordinator. Its methods do not block."""

    def __init__(self, coordinator: Any, run_name: str, gauges: TrialGauges, called_at: float | None = None) -> None:
        """Create the client, and wait for the first command.

        Args:
            coordinator: handle of the `Coordinator` actor.
            called_at: time at which Tune has called the trial's function, in seconds since 1970; None: now.
        """
        self._stages = {
            "a trial's process started": process_started_at(),
            "its function is called": called_at or time.time(),
            "its modules are imported": time.time(),
        }
        self._coordinator, self._run_name, self._gauges = coordinator, run_name, gauges
        self._node_id = ray.get_runtime_context().get_node_id()
        self.command: Command = ray.get(coordinator.get_command.remote(self._node_id))
        """Latest command to the trial."""
        self.should_exit = self.command is not Command.CONTINUE
        """True if the trial has to exit before it is done."""
        self._pending_command: Any = None
        self._last_report = self._last_checkpoint = time.monotonic()

    def on_step(self, step: StepMetrics) -> None:
        """Report a step if the last report is `REPORT_SECONDS` ago; receive the next command."""
        if self._stages:
            self._coordinator.record_stages.remote({**self._stages, "it has made its first step": time.time()})
            self._stages = {}
        if self._pending_command is not None and ray.wait([self._pending_command], timeout=0)[0]:
            self.command, self._pending_command = ray.get(self._pending_command), None
        if self._pending_command is None and time.monotonic() - self._last_report > REPORT_SECONDS:
            self._last_report = time.monotonic()
            self._gauges.update_step(step)
            report_step = self._coordinator.report_step.options(name=self._run_name)  # its task in Ray's dashboard
            self._pending_command = report_step.remote(self._run_name, self._node_id, step)

    def checkpoint_due(self) -> bool:
        """Return True if a checkpoint is due, because of a command or the time since the last one."""
        return self.command is not Command.CONTINUE or time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS

    def on_checkpoint(self, metrics: Mapping[str, Any]) -> None:
        """Handle a saved checkpoint, with the metrics of an evaluation if there was one."""
        self._gauges.update_losses(metrics)
        self._last_checkpoint = time.monotonic()


GAUGE_DESCRIPTIONS = {
    "raylm_train_loss": "Training loss of the last step, nats per token.",
    "raylm_val_loss": "Validation loss of the last evaluation, nats per token.",
    "raylm_adj_val_loss": "Validation loss of the last evaluation, nats per word.",
    "raylm_step": "Optimizer steps done.",
    "raylm_total_steps": "Optimizer steps of the whole trial.",
    "raylm_tokens_seen": "Training tokens so far, over all epochs.",
    "raylm_tokens_per_second": "Training tokens per second of optimizer steps.",
    "raylm_memory_bytes": "Memory of the trial's first process: peak on its GPU, or of the process itself elsewhere.",
}
"""Exported gauges with their descriptions; each is tagged with sweep and run."""
TAG_KEYS = ("sweep", "run")


class TrialGauges:
    """Gauges of one trial. All are set each time: a node exports only what was set since its last export."""

    def __init__(self, sweep_name: str, run_name: str, device: str) -> None:
        self._tags, self._device = {"sweep": sweep_name, "run": run_name}, device
        self._gauges = {
            name: Gauge(name, description, tag_keys=TAG_KEYS) for name, description in GAUGE_DESCRIPTIONS.items()
        }
        self._losses: dict[str, float] = {}

    def update_step(self, step: StepMetrics) -> None:
        """Set all gauges after a step."""
        values = {
            "raylm_train_loss": step.loss,
            "raylm_step": step.step,
            "raylm_total_steps": step.total_steps,
            "raylm_tokens_seen": step.tokens_seen,
            "raylm_tokens_per_second": step.tokens_per_second,
            "raylm_memory_bytes": self._memory_bytes(),
            **self._losses,
        }
        for name, value in values.items():
            self._gauges[name].set(value, self._tags)

    def update_losses(self, metrics: Mapping[str, Any]) -> None:
        """Keep the losses of an evaluation, to be set with later steps."""
        losses = {f"raylm_{name}": metrics.get(name) for name in ("val_loss", "adj_val_loss")}
        self._losses |= {name: value for name, value in losses.items() if value is not None}

    def _memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated() if self._device == "cuda" else machine_bytes_in_use(self._device)
