"""Benchmark GPT-2's head and loss, forward and backward: raylm's blocks against other implementations.

    python bench/head.py [--device cuda] [--vocabulary 50257] [--width 256] [--positions 2048]

The others are whole logits as in transformers, torch's `linear_cross_entropy` where torch has it, and Liger's kernels
where liger-kernel is installed and there is a GPU. It runs in float32 on a CPU, and under bfloat16 autocast on a GPU,
where it also prints the peak memory of each. On a GPU raylm computes the loss of a block in a Triton kernel; it is
raced without that kernel too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from race import build_parser, describe_machine, race
from torch import Tensor

from raylm.training import loss
from raylm.training.loss import linear_cross_entropy

LossFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Function of hidden states (N, D), the head's weight (V, D) and targets (N,) that returns their summed loss."""


def whole_logits_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the summed loss from whole logits, as transformers' GPT2LMHeadModel computes it."""
    logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD).float()
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")


def torch_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the summed loss by torch's `linear_cross_entropy`, which does not follow autocast, in chunks."""
    hidden_ND, weight_VD = _autocast(hidden_ND), _autocast(weight_VD)
    options = torch.nn.LinearCrossEntropyOptions()
    return torch.nn.functional.linear_cross_entropy(hidden_ND, weight_VD, targets_N, reduction="sum", options=options)


def liger_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the summed loss by Liger's Triton kernels, with gradients summed up in float32."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss_fn = LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
    total: Tensor = loss_fn(_autocast(weight_VD), _autocast(hidden_ND), targets_N)
    return total


def plain_blocks_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the summed loss by raylm's blocks without its Triton kernel."""
    with mock.patch.object(loss, "has_loss_kernel", lambda *_: False):
        return linear_cross_entropy(hidden_ND, weight_VD, targets_N)


def _autocast(tensor: Tensor) -> Tensor:
    device = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tensor


def list_variants(device: str) -> dict[str, LossFn]:
    """Return the implementations that this torch and the installed packages have, transformers' first."""
    variants: dict[str, LossFn] = {"transformers": whole_logits_loss, "raylm": linear_cross_entropy}
    if loss.has_loss_kernel(device):
        variants["raylm, no kernel"] = plain_blocks_loss
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        variants["torch"] = torch_loss
    if device == "cuda" and importlib.util.find_spec("liger_kernel"):
        variants["Liger"] = liger_loss
    return variants


@dataclass(frozen=True)
class Head:
    """Random hidden states (N, D), weight of the head (V, D) and targets (N,), on a device."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor

    @classmethod
    def build(cls, positions: int, width: int, vocabulary: int, device: str) -> Head:
        """Return random tensors of these sizes."""
        with torch.device(device):
            hidden_ND = torch.randn(positions, width, requires_grad=True)
            weight_VD = torch.nn.Parameter(torch.randn(vocabulary, width) * 0.02)
            return cls(hidden_ND, weight_VD, torch.randint(0, vocabulary, (positions,)))

    def run(self, loss_fn: LossFn) -> Tensor:
        """Return the mean loss, with gradients; under bfloat16 autocast on a GPU."""
        self.hidden.grad = self.weight.grad = None
        device = self.hidden.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            total = loss_fn(self.hidden, self.weight, self.targets)
        mean = total / len(self.targets)
        mean.backward()
        return mean.detach()

    def peak_bytes(self, loss_fn: LossFn) -> int:
        """Return the additional peak memory on a GPU, with the gradients."""
        self.hidden.grad = self.weight.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self.run(loss_fn)
        return torch.cuda.max_memory_allocated() - before


def main() -> None:
    """Time all variants in turns and print a table."""
    parser = build_parser(__doc__)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--positions", type=int, default=2048)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    head = Head.build(args.positions, args.width, args.vocabulary, args.device)
    variants = list_variants(args.device)
    for name, loss_fn in variants.items():
        mean = head.run(loss_fn)
        if args.device == "cuda":
            print(f"{name}: {head.peak_bytes(loss_fn) / 2**30:.2f} GiB of additional peak memory")
        print(f"{name}: loss {mean.item():.6f}")
    label = f"head and loss, {args.positions} x {args.width} -> {args.vocabulary}"
    runs = {name: lambda loss_fn=loss_fn: head.run(loss_fn) for name, loss_fn in variants.items()}
    race(label, args.device, args.rounds, runs)
    print(describe_machine(args.device))


if __name__ == "__main__":
    main()
