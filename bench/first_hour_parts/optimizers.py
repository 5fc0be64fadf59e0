"""A step of the optimizers that train a GPT-2, alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from first_hour_parts.setup import Setup, build_config
from first_hour_parts.steps import ABSOLUTE_STEP, LEARNING_RATE
from raylm.training.optim.adafactor import Adafactor, can_fuse

Parameters = list[torch.nn.Parameter]


def _transformers(parameters: Parameters) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor as TransformersAdafactor

    optimizer: torch.optim.Optimizer = TransformersAdafactor(parameters, lr=LEARNING_RATE, **ABSOLUTE_STEP)
    return optimizer


def _clipped(parameters: Parameters) -> torch.optim.Optimizer:
    fused = can_fuse(parameters)
    return Adafactor(parameters, lr=LEARNING_RATE, fused=fused, max_grad_norm=1.0 if fused else 0.0)


OPTIMIZERS: dict[str, Callable[[Parameters], torch.optim.Optimizer]] = {
    "raylm": lambda parameters: Adafactor(parameters, lr=LEARNING_RATE, fused=can_fuse(parameters)),
    "raylm, clipped": _clipped,
    "raylm without its Triton kernels": lambda parameters: Adafactor(parameters, lr=LEARNING_RATE),
    "transformers": _transformers,
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True),
}


def measure(setup: Setup, *, cell: str) -> dict[str, Any]:
    """Return time, time of the host, and memory beside parameters, gradients and state of each optimizer's step."""
    from transformers import GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(build_config(setup.cell(f"{cell} 8x1024"), 0.0))
    shapes = [parameter.shape for parameter in model.parameters()]
    values: dict[str, Any] = {"parameters": sum(shape.numel() for shape in shapes)}
    for name, build in OPTIMIZERS.items():
        try:
            values[name] = _measure_one(setup, shapes, build)
        except Exception as error:  # another torch or transformers
            values[name] = {"failed": f"{type(error).__name__}: {error}"}
    return values


def _measure_one(
    setup: Setup, shapes: list[torch.Size], build: Callable[[Parameters], torch.optim.Optimizer]
) -> dict[str, float]:
    setup.clear()
    parameters = [torch.nn.Parameter(torch.zeros(shape, device=setup.device).normal_()) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = build(parameters)
    optimizer.step()
    setup.clear()
    held = torch.cuda.memory_allocated() if setup.device == "cuda" else 0
    timing = setup.time(optimizer.step, seconds=1.0)
    beside = {"GiB beside": setup.peak_gib()["peak GiB"] - held / 2**30} if setup.device == "cuda" else {}
    return {"ms": timing.wall * 1e3, "host ms": timing.host * 1e3, **beside}
