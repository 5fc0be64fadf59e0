"""A sweep's results without Ray: what a sweep through Ray must come to, whatever happens to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.data import preparation
from raylm.report import formats
from raylm.results import sweep_record
from raylm.results.folder import find_results, prune_checkpoints, write_final_status
from raylm.results.rows import DIVERGED
from raylm.results.storage import Folder
from raylm.results.zero_shot import load_zero_shot, write_zero_shot
from raylm.training import models
from raylm.training.device import resolve_precision
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.train import finetune
from raylm.tuning.prepare import PreparedInputs

LAUNCH = "launch-001"


def train_without_ray(sweep: Sweep, storage: Path, trials: Sequence[TrialConfig] | None = None) -> Path:
    """Train a grid's trials in this process, one after another on one thread; return the results folder.

    Args:
        storage: parent of the results folder.
        trials: those to train; None: all of them.
    """
    torch.set_num_threads(1)
    folder = Folder(storage / sweep.name)
    folder.create()
    data = [_train(folder, trial, sweep.precision) for trial in (sweep.trials() if trials is None else trials)]
    launch = sweep_record.LaunchRecord(1, precision=sweep.precision, data=list(dict.fromkeys(data)))
    sweep_record.write(folder, sweep_record.SweepRecord(sweep.name, sweep.trials(), launches=[launch]))
    results = find_results(sweep, folder)
    prune_checkpoints(results)
    formats.write_tables(results)
    return folder.path


def _train(folder: Folder, trial: TrialConfig, precision: str) -> sweep_record.DataRecord:
    """Train a trial and save a checkpoint after each evaluation; return what it was trained on."""
    source = models.resolve_model(trial.model, pretrained=trial.pretrained)
    corpus = preparation.prepare(trial.dataset_spec, source.fetch_files(), trial.model)
    options = ExecutionOptions(precision=resolve_precision(precision, "cpu"))
    is_known = load_zero_shot(folder, trial) is not None
    hooks = TrainingHooks(on_initial_loss=None if is_known else partial(write_zero_shot, folder, trial))
    for number, evaluation in enumerate(finetune(trial, corpus, source, options=options, hooks=hooks)):
        checkpoint = folder.path / LAUNCH / trial.run_name / f"checkpoint_{number:06d}"
        if evaluation.diverged:
            reason = f"the loss was not finite in epoch {evaluation.eval_metrics.epoch}"
            write_final_status(folder, LAUNCH, trial, DIVERGED, reason)
        else:
            checkpoint.mkdir(parents=True)
            evaluation.save(checkpoint)
    return PreparedInputs({trial.corpus_key: corpus}, {}, {}).data_records()[0]
