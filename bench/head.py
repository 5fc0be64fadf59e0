"""Benchmark GPT-2's head and loss, forward and backward: raylm's blocks against whole logits as in transformers.

    python bench/head.py [--device cuda] [--vocabulary 50257] [--width 256] [--positions 2048]

It runs in float32 on a CPU, and under bfloat16 autocast on a GPU, where it also prints the peak memory of each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from race import build_parser, describe_machine, race
from torch import Tensor

from raylm.training.loss import linear_cross_entropy


def whole_logits_loss(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Return the summed loss from whole logits, as transformers' GPT2LMHeadModel computes it."""
    logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD).float()
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")


def main() -> None:
    """Time both variants in turns and print a table."""
    parser = build_parser(__doc__)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--positions", type=int, default=2048)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.device(args.device):
        hidden_ND = torch.randn(args.positions, args.width, requires_grad=True)
        weight_VD = torch.nn.Parameter(torch.randn(args.vocabulary, args.width) * 0.02)
        targets_N = torch.randint(0, args.vocabulary, (args.positions,))

    def run(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        hidden_ND.grad = weight_VD.grad = None
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            total = loss(hidden_ND, weight_VD, targets_N)
        (total / args.positions).backward()
        return total.detach()

    variants = {"transformers": whole_logits_loss, "raylm": linear_cross_entropy}
    for name, loss in variants.items():
        total = run(loss)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run(loss)
            print(f"{name}: {(torch.cuda.max_memory_allocated() - before) / 2**30:.2f} GiB of additional peak memory")
        print(f"{name}: loss {total.item() / args.positions:.6f}")
    label = f"head and loss, {args.positions} x {args.width} -> {args.vocabulary}"
    race(label, args.device, args.rounds, {name: lambda loss=loss: run(loss) for name, loss in variants.items()})
    print(describe_machine(args.device))


if __name__ == "__main__":
    main()
