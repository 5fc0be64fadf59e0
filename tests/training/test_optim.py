"""Adafactor against transformers', weight decay, learning-rate schedules."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers.optimization import Adafactor as TransformersAdafactor

from raylm import TrialConfig
from raylm.training.optim.adafactor import Adafactor
from raylm.training.optim.optimizer import build_optimizer
from raylm.training.optim.schedule import learning_rate_at


def make_parameters() -> list[torch.nn.Parameter]:
    """Return parameters of all dimensions, some of equal shapes, and one that is larger than a block."""
    torch.manual_seed(1)
    shapes = [(6, 4), (5,), (1, 7), (2, 3, 4), (3, 3), (6, 4), (5,), (2, 3, 4), (2100, 257)]
    return [torch.nn.Parameter(torch.randn(shape) * 0.1) for shape in shapes]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("stacked", [False, True])
def test_adafactor_equals_transformers_with_an_absolute_step(weight_decay: float, stacked: bool) -> None:
    ours, theirs = make_parameters(), make_parameters()
    optimizer = Adafactor(ours, lr=5e-5, weight_decay=weight_decay, stacked=stacked)
    reference = TransformersAdafactor(
        theirs, lr=5e-5, weight_decay=weight_decay, scale_parameter=False, relative_step=False, warmup_init=False
    )
    for step in range(50):
        generator = torch.Generator().manual_seed(step)
        for parameter, expected in zip(ours, theirs, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (step % 5 - 3)
            expected.grad = parameter.grad.clone()
        ours[4].grad = theirs[4].grad = torch.zeros(3, 3)  # rows of zeros, as of unused positions
        optimizer.step()
        reference.step()
    for parameter, expected in zip(ours, theirs, strict=True):
        assert (parameter - expected).abs().max() < 1e-6  # 50 steps round values below 0.5 by up to 3e-8 each
        assert torch.isfinite(parameter).all()


def test_stacks_resume_from_a_state_in_any_order() -> None:
    """A checkpoint lists the values of a parameter by name; here, as with square matrices, all have one shape."""
    parameters = {name: torch.nn.Parameter(torch.ones(3, 3)) for name in ("uninterrupted", "resumed")}
    optimizers = {name: Adafactor([parameter], lr=1e-2, stacked=True) for name, parameter in parameters.items()}
    for step in range(2):
        if step == 1:
            state = optimizers["uninterrupted"].state[parameters["uninterrupted"]]
            values = {name: state[name].clone() for name in sorted(state)}
            optimizers["resumed"].state[parameters["resumed"]] = values
            parameters["resumed"].data.copy_(parameters["uninterrupted"])
        for name, parameter in parameters.items():
            parameter.grad = torch.arange(1.0, 10.0).view(3, 3) ** (step + 1)
            if name == "uninterrupted" or step == 1:
                optimizers[name].step()
    assert torch.equal(*parameters.values())


def test_root_mean_square_of_a_step_is_the_learning_rate() -> None:
    weights = make_parameters()[:1]
    before = weights[0].detach().clone()
    weights[0].grad = torch.randn(6, 4) * 1000
    Adafactor(weights, lr=5e-5).step()
    assert (weights[0] - before).square().mean().sqrt().item() == pytest.approx(5e-5, rel=0.05)


def test_only_matrices_decay() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    for name in ("adafactor", "adamw"):
        matrices, others = build_optimizer(TrialConfig(optimizer=name, weight_decay=0.1), model).param_groups
        assert [p.dim() for p in matrices["params"]] == [2]
        assert matrices["weight_decay"] == 0.1
        assert len(others["params"]) == 3
        assert others["weight_decay"] == 0.0


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_a_step_clips_the_norm_of_all_gradients_first(optimizer: str) -> None:
    models = [torch.nn.Linear(3, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    clipping, plain = (
        build_optimizer(TrialConfig(optimizer=optimizer, max_grad_norm=norm), model)
        for norm, model in zip((2.0, 0.0), models, strict=True)
    )
    for step in (1, 2):
        for model in models:
            for parameter in model.parameters():
                parameter.grad = torch.arange(1.0, parameter.numel() + 1).view_as(parameter) * step
        torch.nn.utils.clip_grad_norm_(models[1].parameters(), 2.0)
        clipping.step()
        plain.step()
    assert all(map(torch.equal, models[0].parameters(), models[1].parameters()))
    with pytest.raises(ValueError, match="fused"):
        Adafactor(models[0].parameters(), lr=1.0, max_grad_norm=2.0)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_learning_rate_warms_up_then_decays_and_is_never_zero(schedule: str, warmup_ratio: float, steps: int) -> None:
    config = TrialConfig(lr_schedule=schedule, warmup_ratio=warmup_ratio, learning_rate=2.0)
    rates = [learning_rate_at(config, step, steps) for step in range(steps)]
    warmup = int(warmup_ratio * steps)
    assert all(0 < rate <= 2.0 for rate in rates)
    assert max(rates) == 2.0
    assert all(rate < following for rate, following in itertools.pairwise(rates[:warmup]))
    assert all(rate >= following for rate, following in itertools.pairwise(rates[warmup:]))
    if schedule == "linear" and steps == 100 and warmup_ratio == 0.1:
        assert rates[0] == pytest.approx(0.2)
        assert rates[55] == pytest.approx(1.0)
        assert rates[-1] == pytest.approx(2.0 / 90)
