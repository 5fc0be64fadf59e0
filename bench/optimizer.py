"""Benchmark a step of Adafactor on all parameters of a GPT-2: raylm's against transformers' and torch's.

    python bench/optimizer.py [--device cuda] [--layers 4] [--width 256] [--vocabulary 50257]

torch's is another optimizer, which scales each step by the parameter; only its time is of interest.
"""

from __future__ import annotations

import torch
from race import build_parser, describe_machine, race
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.optimization import Adafactor as TransformersAdafactor

from raylm.training.optim.adafactor import Adafactor, can_fuse


def main() -> None:
    """Time the three in turns, each on its own parameters, and print a table."""
    parser = build_parser(__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=50257)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = {"n_layer": args.layers, "n_embd": args.width, "n_head": args.width // 64}
    with torch.device("meta"):
        shapes = [p.shape for p in GPT2LMHeadModel(GPT2Config(vocab_size=args.vocabulary, **sizes)).parameters()]

    def build_parameters() -> list[torch.nn.Parameter]:
        torch.manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(shape, device=args.device) * 0.02) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return parameters

    absolute_step = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    own = build_parameters()
    optimizers: dict[str, torch.optim.Optimizer] = {
        "transformers": TransformersAdafactor(build_parameters(), lr=5e-5, **absolute_step),
        "torch": torch.optim.Adafactor(build_parameters(), lr=5e-5),
        "raylm": Adafactor(own, lr=5e-5, fused=can_fuse(own)),
    }
    label = f"Adafactor, {sum(shape.numel() for shape in shapes):,} parameters"
    race(label, args.device, args.rounds, {name: optimizer.step for name, optimizer in optimizers.items()})
    print(describe_machine(args.device))


if __name__ == "__main__":
    main()
