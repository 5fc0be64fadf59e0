"""A search with early stopping through Ray: the trials, the losses and the stops that it has without Ray."""

from __future__ import annotations

import copy
import csv
from pathlib import Path

import pytest
import torch
from conftest import RunHere
from ray import tune
from simulated import SimulatedStorage, build_row

from raylm import Resources, Sweep, TrialConfig
from raylm.data import preparation
from raylm.results.measures import VAL_LOSS, Measure
from raylm.results.rows import DONE, INTERRUPTED, STOPPED, Row, SavedCheckpoint
from raylm.training import models
from raylm.training.train import finetune
from raylm.tuning.search import Suggester
from raylm.tuning.trial_queue import TrialQueue

pytestmark = pytest.mark.ray

NUM_TRIALS = 8
EPOCH_TOKENS = 300
"""Tokens of an epoch of all trials, as `SimulatedStorage` counts them."""


@pytest.fixture
def sweep(small_text: Path) -> Sweep:
    """A search of short trials, each evaluated three times before its end."""
    space = {
        "dataset": str(small_text),
        "context_length": 16,
        "batch_size": tune.choice([2, 4]),
        "learning_rate": tune.loguniform(1e-5, 1e-2),
        "epochs": 2,
        "evals_per_epoch": 3,
        "max_train_tokens": EPOCH_TOKENS,
    }
    return Sweep(
        name="search",
        search="optuna",
        num_samples=NUM_TRIALS,
        scheduler="asha",
        space=space,
        resources=Resources(cpus=1, gpus=0),
        precision="float32",
    )


class TrainedStorage(SimulatedStorage):
    """Rows of trials that are trained in this process until the queue stops them."""

    def finish_trial(self, queue: TrialQueue, trial: TrialConfig) -> None:
        corpus = preparation.prepare(trial.dataset_spec, None, trial.model)
        row = build_row(trial, INTERRUPTED)
        for evaluation in finetune(trial, corpus, models.resolve_model(trial.model, pretrained=True)):
            row = Row(trial, INTERRUPTED, "", SavedCheckpoint("", copy.deepcopy(evaluation.trainer.progress)), None)
            if reason := queue.find_stop_reason(trial, row):
                self.rows[trial.id] = Row(trial, STOPPED, reason, row.latest_checkpoint, None)
                break
        else:
            self.rows[trial.id] = Row(trial, DONE, "", row.latest_checkpoint, None)
        queue.mark_finished(self.rows[trial.id])


def test_search_with_early_stopping_is_the_same_with_and_without_ray(sweep: Sweep, run_here: RunHere) -> None:
    torch.set_num_threads(1)
    done = run_here(sweep, max_concurrent=2)
    assert done.exit_code == 0, done.output

    expected = TrainedStorage()
    measure = Measure(VAL_LOSS)  # all trials share a tokenizer; the delay is twice the concurrent trials
    queue = expected.build_queue(
        Suggester(sweep, measure), NUM_TRIALS, delay=4, asha=True, measure=measure
    )  # twice the concurrent trials
    expected.run_launch(queue, max_concurrent=2)
    with (done.folder / "results.csv").open() as file:
        table = {row["run"]: row for row in csv.DictReader(file)}
    assert len(table) == NUM_TRIALS
    assert set(table) == {trial.run_name for trial in queue.trials}
    assert {row["status"] for row in table.values()} == {DONE, STOPPED}
    for trial in queue.trials:
        row, found = expected.rows[trial.id], table[trial.run_name]
        assert (found["status"], found["reason"]) == (row.status, row.reason)
        assert row.metrics is not None
        assert float(found["val_loss"]) == row.metrics.val_loss
