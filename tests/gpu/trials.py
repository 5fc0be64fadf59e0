"""Trials of the GPU tests, and what is seen of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.data.corpus import Corpus
from raylm.results.progress import EvalMetrics, MicroBatching, Progress, StepMetrics
from raylm.training.distributed import SINGLE_PROCESS, DistributedContext
from raylm.training.models import ModelSource
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.train import Evaluation, finetune

OPTIONS = ExecutionOptions("cuda", "bfloat16")


@dataclass
class Observed:
    """Course of a trial."""

    steps: list[StepMetrics] = field(default_factory=list)
    """Metrics whenever the loss was read."""
    evaluations: list[EvalMetrics] = field(default_factory=list)
    reductions: list[MicroBatching] = field(default_factory=list)
    """Smaller micro-batchings after running out of memory."""
    progress: Progress | None = None
    """Progress at the last evaluation."""
    devices: set[str] = field(default_factory=set)
    """Types of the devices that hold the weights and the optimizer's state at the last evaluation."""


def make_config(**fields: Any) -> TrialConfig:
    """Return a trial of GPT-2 with the fields of `step_counts.SHAPES[0]` as defaults."""
    defaults = {"model": "gpt2", "context_length": 256, "batch_size": 8, "dropout": 0.0, "learning_rate": 1e-4}
    return TrialConfig(**{**defaults, **fields})


def train(
    config: TrialConfig,
    corpus: Corpus,
    source: ModelSource,
    *,
    options: ExecutionOptions = OPTIONS,
    resume_from: Path | None = None,
    save_first_to: Path | None = None,
    on_evaluation: Any = None,
    dist_context: DistributedContext = SINGLE_PROCESS,
) -> Observed:
    """Train a trial to its end.

    Args:
        config: the trial.
        corpus: its tokens.
        source: its model.
        options: how to compute it.
        resume_from: folder of a checkpoint.
        save_first_to: folder for a checkpoint of the first evaluation, after which the trial is given up.
        on_evaluation: function that is called with each evaluation.
        dist_context: this process among the ranks of the trial.
    """
    observed = Observed()
    hooks = TrainingHooks(observed.steps.append, observed.reductions.append)
    running = finetune(
        config, corpus, source, options=options, hooks=hooks, resume_from=resume_from, dist_context=dist_context
    )
    for evaluation in running:
        assert not evaluation.diverged
        observed.evaluations.append(evaluation.eval_metrics)
        observed.progress = dataclasses.replace(evaluation.trainer.progress)
        observed.devices = _devices(evaluation)
        if on_evaluation is not None:
            on_evaluation(evaluation)
        if save_first_to is not None:
            evaluation.save(save_first_to)
            break
    running.close()  # type: ignore[attr-defined]
    return observed


def _devices(evaluation: Evaluation) -> set[str]:
    trainer = evaluation.trainer
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    tensors = [*trainer.model.parameters(), *(value for value in states if hasattr(value, "device"))]
    return {tensor.device.type for tensor in tensors}
