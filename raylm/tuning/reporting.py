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

from raylm.results.progress import Step
from raylm.tuning.coordinator import CHECKPOINT_SECONDS, SECONDS_BETWEEN_WORDS, Word

Metrics = Mapping[str, float]


class Reporter:
    """Hands over one evaluation at a time, in their order. Used as a context, which ends when all are handed over.

    Tune ends a trial by raising SystemExit where it reports. That, and whatever else reporting raises, is raised again
    in the trial's own thread, at the next `look` or `wait`.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reporter")
        self._under_way: Future[None] | None = None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)  # a checkpoint on its way arrives, whatever has happened to the trial
        if raised is None:
            self.wait()

    def hand_over(self, metrics: Metrics, save: Callable[[Path], None]) -> None:
        """Begins to report an evaluation, with the checkpoint that `save` writes into a folder at once."""
        self.wait()
        folder = tempfile.TemporaryDirectory()
        try:
            save(Path(folder.name))
            self._under_way = self._thread.submit(_report, metrics, folder)
        except BaseException:
            folder.cleanup()
            raise

    def look(self) -> None:
        """Raises what reporting has raised meanwhile."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Returns when all that was handed over has been reported; raises what that raised."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()


def _report(metrics: Metrics, folder: tempfile.TemporaryDirectory[str]) -> None:
    with folder as path:
        tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(path))


class Contact:
    """A running trial's end of the line to the board. It never waits for an answer."""

    def __init__(self, board: Any, run: str, gauges: Gauges) -> None:
        self._run, self._gauges, self._node = run, gauges, ray.get_runtime_context().get_node_id()
        self._board = board
        self.word: Word = ray.get(board.word.remote(self._node))
        """What the trial is to do."""
        self.left = self.word is not Word.GO_ON
        """Whether it does that: it ends before it is done."""
        self._answer: Any = None
        self._told = self._saved = time.monotonic()

    def on_step(self, step: Step) -> None:
        """Says how far the trial is, now and then."""
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self.word, self._answer = ray.get(self._answer), None
        if self._answer is None and time.monotonic() - self._told > SECONDS_BETWEEN_WORDS:
            self._told = time.monotonic()
            self._gauges.stepped(step)
            named = self._board.step.options(name=self._run)  # so that Ray's dashboard lists the run among the tasks
            self._answer = named.remote(self._run, self._node, step)

    def checkpoint_due(self) -> bool:
        """Whether the trial is to be saved now."""
        return self.word is not Word.GO_ON or time.monotonic() - self._saved > CHECKPOINT_SECONDS

    def saved(self, metrics: Mapping[str, Any]) -> None:
        """The trial was saved, most often with an evaluation."""
        self._gauges.evaluated(metrics)
        self._saved = time.monotonic()


GAUGES = {
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
TAGS = ("sweep", "run")


class Gauges:
    """Those of one trial. A node exports what was set since it was last asked, so all of them are set each time."""

    def __init__(self, sweep: str, run: str, device: str) -> None:
        self._tags, self._device = {"sweep": sweep, "run": run}, device
        self._gauges = {name: Gauge(name, description, tag_keys=TAGS) for name, description in GAUGES.items()}
        self._losses: dict[str, float] = {}

    def stepped(self, step: Step) -> None:
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

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """Keeps the losses of an evaluation, to be set with the steps that follow."""
        named = {f"raylm_{name}": metrics.get(name) for name in ("val_loss", "adj_val_loss")}
        self._losses |= {name: value for name, value in named.items() if value is not None}

    def _memory_bytes(self) -> int:
        return torch.cuda.max_memory_allocated() if self._device == "cuda" else int(psutil.Process().memory_info().rss)
