"""Optimizer steps as CUDA graphs on a GPU: when they are recorded, what happens if that fails, memory, resume.

On the fake GPU all numbers are zeros; the tests that compare numbers are telling on a real one.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda.trial import random_corpus

from gpu.trials import make_config, train
from raylm.results.progress import MicroBatching
from raylm.training import models, step_graph, trainer
from raylm.training.options import ExecutionOptions
from raylm.training.step_graph import WARMUP_STEPS, CudaRecording
from raylm.training.trainer import Trainer

VOCAB_SIZE = 500
STEPS = 20
"""Steps of an epoch; the last one has a short batch."""
NANO = models.resolve_model("gpt2-nano", pretrained=True)
OPTIONS = ExecutionOptions("cuda", "float32", MicroBatching(2))


class Launches:
    """Observer of steps: which were launches of a graph, and the offset of the generator after each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.are_launches: list[bool] = []
        self.offsets: list[int] = []
        self.recordings = 0
        try_step, record = Trainer._try_step, CudaRecording.__init__

        def observe_step(self_: Trainer, *args: Any) -> Any:
            result = try_step(self_, *args)
            self.are_launches.append(self_._step_graph is not None and self_._step_graph._recording is not None)
            self.offsets.append(torch.cuda.default_generators[0].get_offset())
            return result

        def observe_recording(self_: CudaRecording, run: Callable[[], torch.Tensor]) -> None:
            self.recordings += 1
            record(self_, run)

        monkeypatch.setattr(Trainer, "_try_step", observe_step)
        monkeypatch.setattr(CudaRecording, "__init__", observe_recording)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    return Launches(monkeypatch)


def run(optimizer: str = "adafactor", **arguments: Any) -> list[tuple[int, float, float]]:
    """Train a trial of two epochs, and return step, training loss and val loss of each evaluation."""
    fields = {"context_length": 32, "batch_size": 4, "epochs": 2, "evals_per_epoch": 1, "weight_decay": 0.1}
    config = make_config(model="gpt2-nano", optimizer=optimizer, learning_rate=1e-3, dropout=0.1, **fields)
    corpus = random_corpus(config, num_windows=4 * STEPS - 1, vocab_size=VOCAB_SIZE)
    observed = train(config, corpus, NANO, options=OPTIONS, **arguments)
    return [(metrics.step, metrics.train_loss, metrics.val_loss) for metrics in observed.evaluations]


EXPECTED_LAUNCHES = ([False] * WARMUP_STEPS + [True] * (STEPS - WARMUP_STEPS - 1) + [False]) * 2
"""Steps of two epochs: the graph is released before the short batch, and so before the evaluation."""


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_full_batches_are_launches_of_a_graph_with_the_losses_of_ordinary_steps(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    with_graphs = run(optimizer)
    assert launches.are_launches == EXPECTED_LAUNCHES
    assert launches.recordings == 2
    short_batches = slice(STEPS - 1, None, STEPS)
    del launches.offsets[short_batches]
    assert len(set(launches.offsets)) == 1  # both kinds of steps draw equally many random numbers
    monkeypatch.setattr(trainer, "can_record", lambda *args: False)
    ordinary = run(optimizer)
    for (step, *losses), (expected_step, *expected) in zip(with_graphs, ordinary, strict=True):
        assert step == expected_step
        assert losses == pytest.approx(expected, rel=1e-5)  # sums by atomic additions are not in a fixed order


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_trial_resumed_between_graphs_has_the_losses_of_an_uninterrupted_one(tmp_path: Path, optimizer: str) -> None:
    uninterrupted = run(optimizer)
    run(optimizer, save_first_to=tmp_path)
    (resumed,) = run(optimizer, resume_from=tmp_path)
    assert resumed[0] == uninterrupted[-1][0] == 2 * STEPS
    assert resumed[1:] == pytest.approx(uninterrupted[-1][1:], rel=1e-5)


@pytest.mark.parametrize("cause", ["memory", "wait"])
def test_steps_are_ordinary_after_a_recording_that_fails(
    launches: Launches, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    update = Trainer._update

    def fail_while_recording(self: Trainer) -> None:
        if torch.cuda.is_current_stream_capturing():
            if cause == "memory":
                torch.zeros(2**50, dtype=torch.int8, device="cuda")
            else:
                torch.zeros(1, device="cuda").item()
        update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_update", fail_while_recording)
        with pytest.warns(UserWarning, match="without a CUDA graph"):
            steps = [step for step, *_ in run()]
    assert steps == [STEPS, 2 * STEPS]
    assert launches.recordings == 1 and not any(launches.are_launches)
    assert len({*launches.offsets[: STEPS - 1]}) == 1
    launches.are_launches.clear()
    run()  # the next trial of the process
    assert launches.are_launches == EXPECTED_LAUNCHES


def test_graph_reserves_as_much_memory_as_ordinary_steps_and_frees_it_with_the_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before, peaks = torch.cuda.memory_allocated(), []
    for can_record in (step_graph.can_record, lambda *args: False):
        monkeypatch.setattr(trainer, "can_record", can_record)
        torch.cuda.reset_peak_memory_stats()
        run()
        peaks.append(torch.cuda.max_memory_reserved())
        torch._C._cuda_clearCublasWorkspaces()
        assert torch.cuda.memory_allocated() <= before  # without a collection of garbage
        torch.cuda.empty_cache()
    assert peaks[0] <= peaks[1] + 2**26  # a workspace of cuBLAS
