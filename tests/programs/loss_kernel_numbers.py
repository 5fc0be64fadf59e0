"""Run the Triton kernel of the loss in Triton's interpreter, and print its largest differences from torch as JSON."""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

import torch

from raylm.data.corpus import IGNORE_INDEX
from raylm.training import loss_kernel
from raylm.training.loss import FLOAT16_GRADIENT_SCALE


def compare(vocab_size: int, dtype: torch.dtype, in_place: bool) -> dict[str, float]:
    """Return the largest differences of losses and gradients from those of torch in float64."""
    torch.manual_seed(0)
    rows = 6
    logits_nV = (torch.randn(rows, vocab_size) * 4 - 112).requires_grad_()
    targets_n = torch.randint(0, vocab_size, (rows,))
    targets_n[2] = IGNORE_INDEX
    exact_nV = logits_nV.detach().double().requires_grad_()
    exact_n = torch.nn.functional.cross_entropy(exact_nV, targets_n, ignore_index=IGNORE_INDEX, reduction="none")
    exact_n.sum().backward()  # type: ignore[no-untyped-call]
    buffer_nV = torch.empty(rows, -(-vocab_size // 64) * 64)[:, :vocab_size].copy_(logits_nV.detach())
    gradient_nV = buffer_nV if in_place else torch.full((rows, vocab_size), 7, dtype=dtype)
    without_gradient_n = loss_kernel.cross_entropy(buffer_nV, targets_n, None)
    scale = FLOAT16_GRADIENT_SCALE if dtype == torch.float16 else 1.0
    losses_n = loss_kernel.cross_entropy(buffer_nV, targets_n, gradient_nV, scale)
    scaled_nV = gradient_nV.double() / scale
    assert exact_nV.grad is not None
    return {
        "loss": (losses_n - exact_n).abs().max().item(),
        "without_gradient": (without_gradient_n - losses_n).abs().max().item(),
        "gradient": (scaled_nV - exact_nV.grad).abs().max().item(),
        "smallest": (scaled_nV / exact_nV.grad)[exact_nV.grad > 1e-9].sub(1).abs().max().item(),
        "ignored": gradient_nV[2].abs().max().item(),
    }


if __name__ == "__main__":
    results = {
        "one block": compare(11, torch.float32, in_place=True),
        "float32": compare(20_000, torch.float32, in_place=True),
        "bfloat16": compare(50_257, torch.bfloat16, in_place=False),
        "float16": compare(50_257, torch.float16, in_place=False),
    }
    print(json.dumps(results))
