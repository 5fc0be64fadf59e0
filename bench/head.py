"""GPT-2's head and loss, forward and backward: raylm's blocks against the logits as a whole, as in transformers.

    python bench/head.py [--device cuda] [--vocabulary 50257] [--width 256] [--positions 2048]

In float32 on a CPU, under bfloat16 autocast on a GPU, where the peak memory of each is printed too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from race import arguments, machine, race
from torch import Tensor

from raylm.training.loss import linear_cross_entropy


def whole(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """As transformers' GPT2LMHeadModel and its loss do it."""
    logits_NV = torch.nn.functional.linear(hidden_ND, weight_VD).float()
    return torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="sum")


def main() -> None:
    """Lets both take turns."""
    parser = arguments(__doc__)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--positions", type=int, default=2048)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with torch.device(asked.device):
        hidden_ND = torch.randn(asked.positions, asked.width, requires_grad=True)
        weight_VD = torch.nn.Parameter(torch.randn(asked.vocabulary, asked.width) * 0.02)
        targets_N = torch.randint(0, asked.vocabulary, (asked.positions,))

    def run(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        hidden_ND.grad = weight_VD.grad = None
        with torch.autocast(asked.device, torch.bfloat16, enabled=asked.device == "cuda"):
            total = loss(hidden_ND, weight_VD, targets_N)
        (total / asked.positions).backward()
        return total.detach()

    both = {"transformers": whole, "raylm": linear_cross_entropy}
    for name, loss in both.items():
        total = run(loss)
        if asked.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run(loss)
            print(f"{name}: {(torch.cuda.max_memory_allocated() - before) / 2**30:.2f} GiB more at the peak")
        print(f"{name}: loss {total.item() / asked.positions:.6f}")
    what = f"head and loss, {asked.positions} x {asked.width} -> {asked.vocabulary}"
    race(what, asked.device, asked.rounds, {name: lambda loss=loss: run(loss) for name, loss in both.items()})
    print(machine(asked.device))


if __name__ == "__main__":
    main()
