"""Run the Triton kernels of Adafactor in Triton's interpreter, and print their differences from torch as JSON.

Also counts the bytes that they read and write.
"""

from __future__ import annotations

import json
import os
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from raylm.training.optim import adafactor_launch
from raylm.training.optim.adafactor import Adafactor
from raylm.training.optim.stacks import StackUpdate

MATRICES = [(203, 128), (64, 128), (128, 384), (128, 128), (128, 128), (128, 512), (512, 128)]
GPT2_SHAPES = [*MATRICES, (128,), (128,), (384,), (512,)]
"""Parameters of a GPT-2 of width 128, with few embeddings."""
ODD_SHAPES = [(70, 33), (70, 33), (1, 7), (2, 3, 130), (2, 3, 130), (5,), (5,), ()]
STEPS = 2


def make_parameters(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes]


def make_groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    matrices, vectors = ([p for p in parameters if (p.dim() > 1) == large] for large in (True, False))
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def compare(shapes: list[tuple[int, ...]], max_grad_norm: float, lr: float = 1e-3) -> dict[str, float]:
    """Return the largest differences of parameters, in units of the learning rate, and relative ones of moments."""
    ours, theirs = make_parameters(shapes), make_parameters(shapes)
    fused = Adafactor(make_groups(ours), lr, fused=True, max_grad_norm=max_grad_norm)
    reference = Adafactor(make_groups(theirs), lr, stacked=False)
    for group in fused.param_groups:
        group["lr"] = torch.tensor(lr)
    for step in range(STEPS):
        for parameter, expected in zip(ours, theirs, strict=True):
            parameter.grad = torch.randn(parameter.shape) * 10.0 ** (step - 1)
            if parameter.dim() == 2:
                parameter.grad[0] = 0  # as of a token that no text has
            expected.grad = parameter.grad.clone()
        kept = [parameter.grad.clone() for parameter in ours if parameter.grad is not None]
        fused.step()
        assert all(torch.equal(a, b.grad) for a, b in zip(kept, ours, strict=True) if b.grad is not None)
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(theirs, max_grad_norm)
        reference.step()
    difference, moments = 0.0, 0.0
    for parameter, expected in zip(ours, theirs, strict=True):
        difference = max(difference, (parameter - expected).abs().max().item() / lr)
        for name, value in reference.state[expected].items():
            if isinstance(value, Tensor):
                moments = max(moments, ((fused.state[parameter][name] - value) / value).abs().max().item())
    return {"parameters": difference, "moments": moments}


def skip() -> bool:
    """Return whether a step with infinite gradients and `found_inf` changes nothing."""
    (parameter,), moments = make_parameters([(70, 33)]), [torch.ones(1, 70), torch.ones(1, 33)]
    before = parameter.detach().clone()
    numbers = torch.tensor(0.5), torch.tensor(1e-3), 0.1
    stack = StackUpdate([parameter.data], [torch.full((70, 33), torch.inf)], moments, *numbers)
    adafactor_launch.update_stacks([stack], 1.0, torch.tensor(1.0))
    return torch.equal(parameter, before) and all(bool((moment == 1).all()) for moment in moments)


def count_bytes(shape: tuple[int, ...]) -> float:
    """Return the bytes per number that are read and written in a step of a parameter, without those of torch's sums."""
    counted = 0
    names = "create_masked_load", "create_masked_store"
    originals = {name: getattr(InterpreterBuilder, name) for name in names}

    def count(name: str) -> Any:
        def run(self: Any, pointers: Any, *arguments: Any) -> Any:
            nonlocal counted
            mask = arguments[0] if name == "create_masked_load" else arguments[1]
            counted += 4 * int(mask.data.sum())
            return originals[name](self, pointers, *arguments)

        return run

    (parameter,) = make_parameters([shape])
    parameter.grad = torch.randn(shape)
    optimizer = Adafactor([parameter], 1e-3, fused=True, max_grad_norm=1.0)
    with mock.patch.multiple(InterpreterBuilder, **{name: count(name) for name in names}):
        optimizer.step()
    return counted / parameter.numel()


if __name__ == "__main__":
    results = {
        "gpt2, clipped": compare(GPT2_SHAPES, 1.0),
        "odd shapes, clipped": compare(ODD_SHAPES, 1.0),
        "odd shapes": compare(ODD_SHAPES, 0.0),
        "infinite gradients are skipped": skip(),
        "bytes": count_bytes((128, 512)),
    }
    print(json.dumps(results))
