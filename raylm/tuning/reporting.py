"""A trial's evaluations handed to Ray Tune beside its training: while a checkpoint goes into storage, steps go on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import ray
import torch
from ray import tune
from ray.util.metrics import Gauge

from raylm.results.progress import StepMetrics
from raylm.tuning.coordinator import CHECKPOINT_SECONDS, REPORT_SECONDS, Command

Metrics = Mapping[str, float]


class AsyncReporter:
    """Hands over one evaluation at a time, in their order. Used as a context, which ends when all are handed over.

    Tune ends a trial by raising SystemExit where it reports. That, and whatever else reporting raises, is raised again
    in the trial's own thread, at the next `look` or `wait`.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="reporter")
        self._pending: Future[None] | None = None

    def __enter__(self) -> AsyncReporter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True)  # a checkpoint on its way arrives, whatever has happened to the trial
        if exc is None:
            self.wait()

    def submit(self, metrics: Metrics, save: Callable[[Path], None]) -> None:
        """Begins to report an evaluation, with the checkpoint that `save` writes into a folder at once."""
        self.wait()
        folder = tempfile.TemporaryDirectory()
        try:
            save(Path(folder.name))
            self._pending = self._executor.submit(_report_to_tune, metrics, folder)
        except BaseException:
            folder.cleanup()
            raise

    def raise_if_failed(self) -> None:
        """Raises what reporting has raised meanwhile."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Returns when all that was handed over has been reported; raises what that raised."""
        under_way, self._pending = self._pending, None
        if under_way is not None:
            under_way.result()


def _report_to_tune(metrics: Metrics, folder: tempfile.TemporaryDirectory[str]) -> None:
    with folder as path:
        tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(path))


class CoordinatorClient:
    """A running trial's end of the line to the board. It never waits for an answer."""

    def __init__(self, coordinator: Any, run_name: str, gauges: TrialGauges) -> None:
        self._run_name, self._gauges, self._node_id = run_name, gauges, ray.get_runtime_context().get_node_id()
        self._coordinator = coordinator
        self.command: Command = ray.get(coordinator.get_command.remote(self._node_id))
        """What the trial is to do."""
        self.should_exit = self.command is not Command.CONTINUE
        """Whether it does that: it ends before it is done."""
        self._pending_command: Any = None
        self._last_report = self._last_checkpoint = time.monotonic()

    def on_step(self, step: StepMetrics) -> None:
        """Says how far the trial is, now and then."""
        if self._pending_command is not None and ray.wait([self._pending_command], timeout=0)[0]:
            self.command, self._pending_command = ray.get(self._pending_command), None
        if self._pending_command is None and time.monotonic() - self._last_report > REPORT_SECONDS:
            self._last_report = time.monotonic()
            self._gauges.update_step(step)
            named = self._coordinator.report_step.options(
                name=self._run_name
            )  # so that Ray's dashboard lists the run among the tasks
            self._pending_command = named.remote(self._run_name, self._node_id, step)

    def checkpoint_due(self) -> bool:
        """Whether the trial is to be saved now."""
        return self.command is not Command.CONTINUE or time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS

    def on_checkpoint(self, metrics: Mapping[str, Any]) -> None:
        """The trial was saved, most often with an evaluation."""
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
    "raylm_memory_bytes": "Memory of the trial's first process: of its GPU at its peak, without one of the process.",
}
"""What is exported, with what it means; each by sweep and run."""
TAG_KEYS = ("sweep", "run")


class TrialGauges:
    """Those of one trial. A node exports what was set since it was last asked, so all of them are set each time."""

    def __init__(self, sweep_name: str, run_name: str, device: str) -> None:
        self._tags, self._device = {"sweep": sweep_name, "run": run_name}, device
        self._gauges = {
            name: Gauge(name, description, tag_keys=TAG_KEYS) for name, description in GAUGE_DESCRIPTIONS.items()
        }
        self._losses: dict[str, float] = {}

    def update_step(self, step: StepMetrics) -> None:
        """Sets what there is to say after a step."""
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
        """Keeps the losses of an evaluation, to be set with the steps that follow."""
        named = {f"raylm_{name}": metrics.get(name) for name in ("val_loss", "adj_val_loss")}
        self._losses |= {name: value for name, value in named.items() if value is not None}

    def _memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated() if self._device == "cuda" else int(psutil.Process().memory_info().rss)
