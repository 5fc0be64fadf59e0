"""Ray Tune's function trainable around the loop: report, checkpoint, go on from the newest one in storage."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray import tune

from raylm import memory, models, results
from raylm.config import TrialConfig
from raylm.data import Corpus
from raylm.errors import UserError
from raylm.train import OnStep, finetune, resolved_precision

SECONDS_BETWEEN_STEPS_TOLD = 0.5


@dataclass(frozen=True)
class Job:
    """What all trials of a launch share."""

    sweep_folder: str
    corpora: Mapping[tuple[str, str], Any]
    """Ray reference to the corpus of (dataset, model): each node holds one copy, which its trials share."""
    sources: Mapping[tuple[str, bool], models.ModelSource]
    """The model of (name, pretrained)."""
    precision: str
    gpus: float
    """Per trial."""
    cpus: int
    """Per trial."""
    board: Any
    """Actor that is told of steps."""


class Board:
    """What running trials say of their steps, for the display. Runs as an actor without a share of a CPU."""

    def __init__(self) -> None:
        self._steps: dict[str, tuple[int, int, float]] = {}

    def put(self, run: str, step: int, total_steps: int, loss: float) -> None:
        """Takes down how far a run is."""
        self._steps[run] = (step, total_steps, loss)

    def all(self) -> dict[str, tuple[int, int, float]]:
        """(steps done, steps in all, training loss) of each run."""
        return self._steps


def train_gpt2(config: dict[str, Any], job: Job) -> None:
    """One trial. A mistake that no retry mends is reported as the trial's end; all else is raised, to be retried."""
    trial = TrialConfig.recorded(config)
    device = "cuda" if job.gpus else "cpu"
    torch.set_num_threads(job.cpus)
    corpus: Corpus = ray.get(job.corpora[trial.dataset, trial.model])
    source = job.sources[trial.model, trial.pretrained]
    precision = resolved_precision(job.precision, device)
    try:
        evaluations = finetune(
            trial,
            corpus,
            source,
            device=device,
            precision=precision,
            micro_batch_size=_micro_batch_size(trial, source, job, precision),
            resume_from=results.newest_verified(Path(job.sweep_folder), trial),
            on_step=_told_now_and_then(job.board, trial.run_name),
        )
        for evaluation in evaluations:
            with tempfile.TemporaryDirectory() as folder:
                if evaluation.diverged:
                    tune.report(evaluation.metrics())
                else:
                    evaluation.save(Path(folder))
                    tune.report(evaluation.metrics(), checkpoint=tune.Checkpoint.from_directory(folder))
    except UserError as error:
        tune.report({"reason": str(error)})
    finally:  # the process goes on to the next trial
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def _micro_batch_size(trial: TrialConfig, source: models.ModelSource, job: Job, precision: str) -> int:
    """What fits into the trial's share of the device; the whole batch where the model's shape is not known."""
    shape = models.shape(source)
    if shape is None:
        return trial.batch_size
    if job.gpus:
        available = torch.cuda.mem_get_info()[1] * min(job.gpus, 1.0)
    else:
        available = psutil.virtual_memory().total * job.cpus / (os.cpu_count() or 1)
    return memory.micro_batch_size(shape, trial.context_length, trial.batch_size, precision, trial.optimizer, available)


def _told_now_and_then(board: Any, run: str) -> OnStep:
    last = 0.0

    def on_step(step: int, total_steps: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > SECONDS_BETWEEN_STEPS_TOLD:
            last = time.monotonic()
            board.put.remote(run, step, total_steps, loss)

    return on_step
