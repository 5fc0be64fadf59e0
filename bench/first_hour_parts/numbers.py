"""Numbers that only a real device shows: rounding of the loss, of the optimizer, and the losses of some steps.

N is the number of positions, D the model's width, V its vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from head import LossFn, plain_blocks_loss
from torch import Tensor

from first_hour_parts.setup import Setup, build_model
from first_hour_parts.steps import build_step
from raylm.training.loss import has_loss_kernel, linear_cross_entropy
from raylm.training.optim.adafactor import Adafactor, can_fuse

SHAPES = ((50257, 768), (768, 2304), (768, 2304), (768, 3072), (3072, 768), (768,), (768,), (3072,))
"""Parameters like those of GPT-2, some of the same shape."""


def head_errors(setup: Setup, *, mean: float) -> dict[str, Any]:
    """Return the errors of raylm's loss and of whole logits, and of their gradients, against float64.

    Args:
        mean: number that all logits lie near; GPT-2's lie near -112.
    """
    num_positions, width, vocab_size = setup.pick((2048, 768, 50257), (64, 32, 512))
    torch.manual_seed(0)
    hidden_ND = torch.randn(num_positions, width, device=setup.device)
    weight_VD = torch.randn(vocab_size, width, device=setup.device) * 3 / width**0.5
    hidden_ND[:, 0], weight_VD[:, 0] = 4.0, mean / 4.0  # adds the mean to each logit
    targets_N = torch.randint(0, vocab_size, (num_positions,), device=setup.device)

    def whole(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
        logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD)
        return torch.nn.functional.cross_entropy(logits_NV.to(total_dtype), targets_N, reduction="sum")

    loss_fns: dict[str, LossFn] = {"float64": whole, "raylm": linear_cross_entropy, "whole logits": whole}
    if has_loss_kernel(setup.device):
        loss_fns["raylm, no kernel"] = plain_blocks_loss
    results = {}
    for name, loss_fn in loss_fns.items():
        dtype = torch.float64 if name == "float64" else torch.float32
        total_dtype = dtype
        hidden, weight = (value.to(dtype).detach().requires_grad_() for value in (hidden_ND, weight_VD))
        with torch.autocast(setup.device, torch.bfloat16, enabled=dtype == torch.float32):
            loss = loss_fn(hidden, weight, targets_N) / num_positions
        loss.backward()
        results[name] = loss.item(), hidden.grad, weight.grad
    exact_loss, exact_hidden, exact_weight = results.pop("float64")
    values: dict[str, Any] = {"loss in float64": exact_loss}
    for name, (loss_value, hidden_grad, weight_grad) in results.items():
        values[name] = {
            "error of the loss": loss_value - exact_loss,
            "of the hidden states' gradient, relative": _relative_error(hidden_grad, exact_hidden),
            "of the weight's gradient, relative": _relative_error(weight_grad, exact_weight),
        }
    return values


def _relative_error(value: Tensor | None, exact: Tensor | None) -> float:
    assert value is not None and exact is not None
    return ((value.double() - exact).norm() / exact.norm()).item()


def adafactor_difference(setup: Setup) -> dict[str, Any]:
    """Return the largest difference of parameters after 20 steps on the device and on a CPU."""
    shapes = setup.pick(SHAPES, ((64, 32), (64, 32), (32,)))
    torch.manual_seed(0)
    own = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    others = [torch.nn.Parameter(parameter.detach().to(setup.device)) for parameter in own]
    learning_rate = 1e-3
    optimizers = [Adafactor(group, lr=learning_rate, fused=can_fuse(group)) for group in (own, others)]
    for _ in range(20):
        for parameter, other in zip(own, others, strict=True):
            parameter.grad = torch.randn_like(parameter)
            other.grad = parameter.grad.to(setup.device, copy=True)
        for optimizer in optimizers:
            optimizer.step()
    largest = max((a.detach() - b.detach().cpu()).abs().max().item() for a, b in zip(own, others, strict=True))
    return {"largest difference": largest, "sum of the learning rates": 20 * learning_rate}


def losses(setup: Setup, *, tool: str, precision: str, on: str | None = None) -> dict[str, Any]:
    """Return the loss of each of 20 steps from the same weights on the same text, without dropout.

    Args:
        tool: `raylm` or `transformers`, which uses eager attention in float32.
        precision: `float32` or `bfloat16`.
        on: device, if not that of the setup.
    """
    device, cell = on or setup.device, setup.cell("gpt2 2x256")
    steps = setup.pick(20, 3)
    model = build_model(cell, 0.0, "cpu").to(device)
    attention = "eager" if precision == "float32" else "sdpa"
    step = build_step(cell, model, device, tool=tool, precision=precision, num_batches=steps, attention=attention)
    values = torch.stack([step() for _ in range(steps)]).tolist()
    return {"first loss": values[0], "last loss": values[-1], "losses": values}
