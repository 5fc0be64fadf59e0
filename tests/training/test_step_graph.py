"""Recorded optimizer steps, on a CPU: operations are recorded and repeated in place of a CUDA graph."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from raylm import TrialConfig
from raylm.data.corpus import Corpus
from raylm.results.progress import LossScale, MicroBatching
from raylm.training import models, train
from raylm.training.distributed import SINGLE_PROCESS
from raylm.training.optim.adafactor import Adafactor
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.step_graph import MIN_LAUNCHES, WARMUP_STEPS, StepGraph, StepNumbers
from raylm.training.trainer import Trainer

NANO = models.resolve_model("gpt2-nano", pretrained=True)
NUM_STEPS = WARMUP_STEPS + MIN_LAUNCHES + 5
"""Steps of a trial, the last one with a short batch."""
CONFIG = TrialConfig(
    context_length=16,
    batch_size=4,
    learning_rate=1e-3,
    dropout=0.1,
    weight_decay=0.1,
    max_train_tokens=15 * (4 * NUM_STEPS - 1) - 5,  # the last window is short too
)


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Recording of a step's operations, with all Python numbers as they were, repeated on the same tensors.

    As with a CUDA graph, recording changes no tensor and draws no random number.
    """

    def __init__(self, run: Callable[[], Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operations: list[tuple[Any, Any, Any, Any]] = []
        self._seen: dict[int, Tensor] = {}
        self._before: list[tuple[Tensor, Tensor]] = []
        self.launches, self.is_released = 0, False
        random_state = torch.get_rng_state()
        with self:
            self._recorded_loss = run()
        torch.set_rng_state(random_state)
        for tensor, value in self._before:
            tensor.copy_(value)
        self.loss = torch.zeros(())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "waits for the device"
        for tensor in self._tensors((args, kwargs)):
            if id(tensor) not in self._seen:
                self._seen[id(tensor)] = tensor
                self._before.append((tensor.detach(), tensor.detach().clone()))
        result = func(*args, **(kwargs or {}))
        self._operations.append((func, args, kwargs or {}, result))
        self._seen.update({id(tensor): tensor for tensor in self._tensors(result)})
        return result

    @staticmethod
    def _tensors(tree: Any) -> Iterator[Tensor]:
        return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))

    def launch(self) -> None:
        made: dict[int, Tensor] = {}

        def current(leaf: Any) -> Any:
            return made.get(id(leaf), leaf)

        with torch.no_grad():
            for func, args, kwargs, recorded in self._operations:
                result = func(*tree_map(current, args), **tree_map(current, kwargs))
                made.update(zip(map(id, self._tensors(recorded)), self._tensors(result), strict=True))
        self.loss, self.launches = made[id(self._recorded_loss)], self.launches + 1

    def release(self) -> None:
        self.is_released = True


Record = Callable[[Callable[[], Tensor]], Any]


def build_trainer(
    corpus: Corpus, record: Record | None = None, config: TrialConfig = CONFIG, precision: str = "float32"
) -> Trainer:
    """Return a trainer as on a GPU, with Adafactor in stacks; with a recorder, it records its steps."""
    options = ExecutionOptions(precision=precision, micro_batching=MicroBatching(3))
    trainer = train._build_trainer(config, corpus, NANO, options, TrainingHooks(), None, SINGLE_PROCESS)
    assert trainer.progress.total_steps == NUM_STEPS
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in trainer.optimizer.param_groups]
    trainer.optimizer = Adafactor(groups, lr=0.0, stacked=True)
    trainer._numbers = StepNumbers(trainer.optimizer, torch.device("cpu"))
    if record is not None:
        trainer._step_graph = StepGraph(trainer.optimizer, record)
    return trainer


def weights(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


@pytest.fixture(scope="module")
def expected(corpus: Corpus) -> Trainer:
    """Return a trainer after its steps in the usual way."""
    trainer = build_trainer(corpus)
    assert trainer.train(0, range(NUM_STEPS))
    return trainer


def test_numbers_in_tensors_give_the_same_weights_as_those_of_python_to_the_bit(corpus: Corpus) -> None:
    config = dataclasses.replace(CONFIG, weight_decay=0.0)  # its product with the learning rate is rounded differently
    with_tensors, with_floats = build_trainer(corpus, config=config), build_trainer(corpus, config=config)
    with_floats._numbers = StepNumbers(with_floats.optimizer, None)
    for trainer in (with_tensors, with_floats):
        assert trainer.train(0, range(5))
    assert all(map(torch.equal, weights(with_tensors), weights(with_floats)))


def test_recorded_steps_give_the_numbers_of_ordinary_ones_to_the_bit(corpus: Corpus, expected: Trainer) -> None:
    tapes: list[Tape] = []

    def record(run: Callable[[], Tensor]) -> Tape:
        tapes.append(Tape(run))
        return tapes[-1]

    trainer = build_trainer(corpus, record)
    assert trainer.train(0, range(NUM_STEPS))
    (tape,) = tapes
    assert tape.launches == NUM_STEPS - WARMUP_STEPS - 1 and tape.is_released  # before the short batch at the end
    assert trainer.progress.curve == expected.progress.curve
    assert all(map(torch.equal, weights(trainer), weights(expected)))


def test_overflow_in_float16_skips_a_recorded_step_without_the_host(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raylm.training.trainer.LossScale", partial(LossScale, scale=2.0**22))
    ordinary = build_trainer(corpus, precision="float16")
    recorded = build_trainer(corpus, Tape, precision="float16")
    for trial in (ordinary, recorded):
        assert trial.train(0, range(NUM_STEPS))
    skipped = ordinary.progress.skipped_steps
    assert WARMUP_STEPS < skipped < NUM_STEPS - 5 and recorded.progress.loss_scale == ordinary.progress.loss_scale
    assert recorded.progress.curve == ordinary.progress.curve
    assert all(map(torch.equal, weights(recorded), weights(ordinary)))


def test_trial_resumed_between_recorded_steps_goes_on_with_the_same_numbers(corpus: Corpus, expected: Trainer) -> None:
    first, second = build_trainer(corpus, Tape), build_trainer(corpus, Tape)
    stop = WARMUP_STEPS + MIN_LAUNCHES + 1  # in the middle of an epoch, as at a due checkpoint
    assert first.train(0, range(stop))
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.progress = first.progress
    second._numbers = StepNumbers(second.optimizer, torch.device("cpu"))
    torch.manual_seed(12345)
    assert second.train(0, range(stop, NUM_STEPS))
    assert second.progress.curve == expected.progress.curve
    assert all(map(torch.equal, weights(second), weights(expected)))


def test_step_that_cannot_be_recorded_runs_in_the_usual_way(corpus: Corpus, expected: Trainer) -> None:
    attempts = 0

    def record(run: Callable[[], Tensor]) -> Tape:
        nonlocal attempts
        attempts += 1
        run_on_no_memory()
        return Tape(run)

    def run_on_no_memory() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer = build_trainer(corpus, record)
    with pytest.warns(UserWarning, match="without a CUDA graph: OutOfMemoryError: CUDA out of memory"):
        assert trainer.train(0, range(NUM_STEPS))
    assert attempts == 1
    assert all(map(torch.equal, weights(trainer), weights(expected)))


def test_short_stretch_is_not_recorded(corpus: Corpus) -> None:
    trainer = build_trainer(corpus, lambda run: pytest.fail("recorded"))
    assert trainer.train(0, range(WARMUP_STEPS + MIN_LAUNCHES - 1))
