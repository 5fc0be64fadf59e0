"""Checkpoints in two parts: the one that the trial waits for, and the one that is done while it continues."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from raylm import TrialConfig
from raylm.data.corpus import Corpus
from raylm.results import manifest
from raylm.training import checkpoint, models
from raylm.training.optim.adafactor import Adafactor
from raylm.training.train import Evaluation, finetune


@pytest.fixture(params=["adafactor", "adamw"])
def running(corpus: Corpus, request: pytest.FixtureRequest) -> Iterator[Evaluation]:
    """Trial of two evaluations."""
    config = TrialConfig(context_length=32, max_train_tokens=400, evals_per_epoch=2, optimizer=request.param)
    return finetune(config, corpus, models.resolve_model("gpt2-nano", pretrained=True))


def as_if_on(device: str, evaluation: Evaluation) -> Evaluation:
    """Return an evaluation of a trial on a CPU as one that says it is on another device."""
    trainer = SimpleNamespace(**vars(evaluation.trainer))
    trainer.options = replace(evaluation.trainer.options, device=device)
    return replace(evaluation, trainer=cast(Any, trainer))


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_checkpoint_that_is_written_later_holds_the_state_of_its_step(
    running: Iterator[Evaluation], tmp_path: Path
) -> None:
    at_once, later = tmp_path / "at-once", tmp_path / "later"
    at_once.mkdir()
    later.mkdir()
    first = next(running)
    complete = as_if_on("cuda", first).start_saving(later, max_copy_bytes=math.inf)
    assert list(later.iterdir()) == []
    first.save(at_once)
    next(running)  # the weights, the optimizer and the progress change
    complete()
    assert read_files(later) == read_files(at_once)
    content = manifest.verify(later)
    assert content is not None and content.progress.step < first.trainer.progress.step


@pytest.mark.parametrize(("device", "missing"), [("cpu", 0), ("cuda", 1)])
def test_a_checkpoint_that_is_not_copied_is_written_before_the_next_step(
    corpus: Corpus, device: str, missing: int, tmp_path: Path
) -> None:
    """Tensors of a CPU are not copied, nor those of a GPU that would take too much of the host's memory."""
    config = TrialConfig(context_length=32, max_train_tokens=300, max_grad_norm=0)
    (last,) = finetune(config, corpus, models.resolve_model("gpt2-nano", pretrained=True))
    size = checkpoint.count_bytes(last.trainer.model, last.trainer.optimizer)
    complete = as_if_on(device, last).start_saving(tmp_path, max_copy_bytes=size - missing)
    files = read_files(tmp_path)
    assert {"model.safetensors", manifest.OPTIMIZER_FILE} <= set(files)
    assert manifest.verify(tmp_path) is None, "it counts before it is whole"
    complete()
    assert read_files(tmp_path).items() >= files.items() and manifest.verify(tmp_path)
    assert 0 <= size - sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) + 20_000 < 40_000


def test_tied_weights_are_copied_once() -> None:
    weight, other = torch.ones(3, 2), torch.zeros(3, 2)
    weights, state = checkpoint._copy_to_host(
        {"wte": weight, "head": weight.detach()}, {"0.step": other, "1.step": other}
    )
    assert weights["wte"] is weights["head"] and weights["wte"].data_ptr() != weight.data_ptr()
    assert state["0.step"].data_ptr() != state["1.step"].data_ptr(), "safetensors writes no shared memory"


def test_adafactor_continues_with_the_moments_of_its_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    """In stacks, as on a GPU: a file does not keep the order of a state's names, and some matrices are square."""
    config = TrialConfig(context_length=32, max_train_tokens=300, max_grad_norm=0)
    (last,) = finetune(config, corpus, models.resolve_model("gpt2-nano", pretrained=True))
    last.save(tmp_path)
    parameters = [p for group in last.trainer.optimizer.param_groups for p in group["params"]]  # as files number them
    stacked = Adafactor(parameters, lr=1e-3, stacked=True)
    checkpoint.load_optimizer(tmp_path, stacked)
    weights = []
    for optimizer in (last.trainer.optimizer, stacked):
        before = [parameter.detach().clone() for parameter in parameters]
        torch.manual_seed(0)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        for group in optimizer.param_groups:
            group.update(lr=1e-3, weight_decay=0.0)
        optimizer.step()
        weights.append([parameter.detach().clone() for parameter in parameters])
        for parameter, value in zip(parameters, before, strict=True):
            parameter.data.copy_(value)
    for one, other in zip(*weights, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
