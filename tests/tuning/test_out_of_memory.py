"""Memory that runs out in a step: the trial goes on with less at a time, from where it was, to the same result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RunHere
from oracle import read_stable_table
from torch import nn
from trial_hooks import RAN_OUT_FILE, train_with_little_memory

from raylm import Resources, Sweep, TrialConfig
from raylm.data.corpus import Corpus
from raylm.results.progress import MicroBatching, StepMetrics
from raylm.training import models
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.train import Evaluation, finetune
from raylm.tuning import tuner

NANO = models.resolve_model("gpt2-nano", pretrained=True)
BATCH = 8


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def trial(**fields: Any) -> TrialConfig:
    return TrialConfig(context_length=32, batch_size=BATCH, learning_rate=1e-3, max_train_tokens=1500, **fields)


class Card:
    """Memory for so many windows in training, from a step on; it runs out deep in the model, as a GPU's does."""

    def __init__(self, windows: int, from_step: int = 0, failures: int | None = None) -> None:
        self.windows, self.from_step, self.failures = windows, from_step, failures
        self.step, self.ran_out = 0, 0

    def note_step(self, metrics: StepMetrics) -> None:
        self.step = metrics.step

    def _forward(self, module: nn.Module, inputs: Any) -> None:
        if not isinstance(module, nn.LayerNorm) or not module.training or self.step < self.from_step:
            return
        if len(inputs[0]) > self.windows and (self.failures is None or self.ran_out < self.failures):
            self.ran_out += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    @contextmanager
    def used(self) -> Iterator[None]:
        hook = nn.modules.module.register_module_forward_pre_hook(self._forward)
        try:
            yield
        finally:
            hook.remove()


def train(
    config: TrialConfig, corpus: Corpus, card: Card, resume_from: Path | None = None, **options: Any
) -> tuple[list[Evaluation], list[MicroBatching]]:
    smaller: list[MicroBatching] = []
    with card.used():
        found = list(
            finetune(
                config,
                corpus,
                NANO,
                options=ExecutionOptions(**options),
                hooks=TrainingHooks(card.note_step, smaller.append),
                resume_from=resume_from,
            )
        )
    return found, smaller


def weights(evaluation: Evaluation) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in evaluation.trainer.model.state_dict().items()}


PLENTY = Card(windows=BATCH)


def test_from_the_first_step_it_is_the_trial_that_began_with_less(corpus: Corpus) -> None:
    config = trial(dropout=0.1)
    (last,), smaller = train(config, corpus, Card(windows=2))
    (same,), none = train(config, corpus, PLENTY, micro_batching=MicroBatching(2))
    assert (smaller, none) == ([MicroBatching(4), MicroBatching(2)], [])
    assert last.eval_metrics == same.eval_metrics and last.trainer.progress.micro_batching == MicroBatching(2)
    assert all(torch.equal(value, weights(same)[name]) for name, value in weights(last).items())


def test_in_the_middle_it_goes_on_from_that_step_with_the_same_result(corpus: Corpus, tmp_path: Path) -> None:
    config = trial(evals_per_epoch=2)
    undisturbed, _ = train(config, corpus, PLENTY)
    card = Card(windows=3, from_step=2)
    disturbed, smaller = train(config, corpus, card)
    assert (
        smaller == [MicroBatching(4), MicroBatching(2)] and card.ran_out == 2
    )  # the step was not begun again more often
    for one, other in zip(undisturbed, disturbed, strict=True):
        assert one.eval_metrics.tokens_seen == other.eval_metrics.tokens_seen
        assert one.eval_metrics.train_loss == pytest.approx(other.eval_metrics.train_loss, abs=1e-5)
        assert one.eval_metrics.val_loss == pytest.approx(other.eval_metrics.val_loss, abs=1e-5)


def test_what_it_has_learnt_of_its_card_is_in_its_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    config = trial(dropout=0.1, evals_per_epoch=2)
    card = Card(windows=4, from_step=1)
    with card.used():
        running = finetune(config, corpus, NANO, hooks=TrainingHooks(on_step=card.note_step))
        next(running).save(tmp_path)
        (last,) = running
    (resumed,), smaller = train(config, corpus, Card(windows=4), resume_from=tmp_path)
    assert smaller == [] and resumed.eval_metrics == last.eval_metrics
    (limited,), _ = train(config, corpus, PLENTY, resume_from=tmp_path, micro_batching_limit=MicroBatching(3))
    assert limited.trainer.progress.micro_batching == MicroBatching(3)


def test_where_one_window_is_too_much_its_activations_are_recomputed(corpus: Corpus) -> None:
    config = trial(dropout=0.1)
    (last,), smaller = train(config, corpus, Card(windows=0, from_step=1, failures=2), micro_batching=MicroBatching(2))
    assert smaller == [MicroBatching(1), MicroBatching(1, recompute=True)] and last.trainer.progress.recompute
    (same,), _ = train(config, corpus, Card(windows=1, from_step=1), micro_batching=MicroBatching(2))
    assert last.eval_metrics == same.eval_metrics  # to the same numbers


def test_where_nothing_is_less_the_error_is_raised(corpus: Corpus) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        train(trial(), corpus, Card(windows=0, from_step=1))


REAL = """
import json, resource, sys, torch
import transformers.models.gpt2.modeling_gpt2  # before the limit: its libraries are mapped when a model is loaded
from raylm import Resources, Sweep, TrialConfig
from raylm.config.dataset import DatasetSpec
from raylm.data.preparation import prepare
from raylm.training import models
from raylm.training.options import TrainingHooks
from raylm.training.train import finetune
torch.set_num_threads(1)
config = TrialConfig(context_length=256, batch_size=64, max_train_tokens=33_000, learning_rate=1e-3)
corpus = prepare(DatasetSpec("pydocs"), None, "gpt2-nano")
fits = []
if sys.argv[1:]:  # so many MiB more than now
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[1]) * 2**20,) * 2)
hooks = TrainingHooks(on_out_of_memory=fits.append)
(last,) = finetune(config, corpus, models.resolve_model("gpt2-nano", pretrained=True), hooks=hooks)
print(json.dumps([last.eval_metrics.val_loss, [fit.micro_batch_size for fit in fits]]))
"""


def test_memory_that_the_system_does_not_give(tmp_path: Path) -> None:
    def trained(*arguments: str) -> Any:
        code = [sys.executable, "-c", REAL, *arguments]
        environment = {**os.environ, "RAYLM_CACHE": str(tmp_path), "MALLOC_ARENA_MAX": "1"}
        done = subprocess.run(code, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    (plenty, none), (little, smaller) = trained(), trained("300")
    assert none == [] and smaller[0] == 32
    assert little == pytest.approx(plenty, abs=1e-4)


# ---- in a sweep ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [1, 2])
def test_later_trials_of_a_shape_start_with_what_an_earlier_one_came_to(
    small_text: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    monkeypatch.setattr(tuner, "train_gpt2", train_with_little_memory)
    rates = {"grid_search": [1e-4, 1e-3]}
    space = {"dataset": str(small_text), "context_length": 16, "batch_size": 4, "learning_rate": rates}
    sweep = Sweep(name="small", space=space, resources=Resources(gpus=gpus), max_failures=0)
    done = run_here(sweep, max_concurrent=1)
    assert done.exit_code == 0, done.output
    rows = read_stable_table(done.folder).values()
    assert [(row["status"], row["micro_batch_size"]) for row in rows] == [("done", "1")] * 2
    logs = "".join(file.read_text() for file in done.folder.rglob("log*.txt"))
    assert "out of memory: continues with micro-batch 1" in logs
    ran_out = sorted((done.folder / RAN_OUT_FILE).read_text().split(), reverse=True)
    if gpus == 1:
        assert ran_out == ["4", "2"]  # one after the other, in the first trial
    else:
        assert set(ran_out) == {"2"} and len(ran_out) <= gpus  # all ranks in one attempt; the next one knew
        assert "starts again from its latest checkpoint: out of memory with micro-batch 2" in done.output
