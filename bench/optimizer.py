"""A step of Adafactor on all parameters of a GPT-2: raylm's against transformers', and torch's, which is another one.

    python bench/optimizer.py [--device cuda] [--layers 4] [--width 256] [--vocabulary 50257]

torch's scales each step by its parameter; it is here for its time.
"""

from __future__ import annotations

import torch
from race import arguments, machine, race
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.optimization import Adafactor as TransformersAdafactor

from raylm.training.optim import Adafactor


def main() -> None:
    """Lets the three take turns, each on parameters of its own."""
    parser = arguments(__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=50257)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    sizes = {"n_layer": asked.layers, "n_embd": asked.width, "n_head": asked.width // 64}
    with torch.device("meta"):
        shapes = [p.shape for p in GPT2LMHeadModel(GPT2Config(vocab_size=asked.vocabulary, **sizes)).parameters()]

    def parameters() -> list[torch.nn.Parameter]:
        torch.manual_seed(0)
        made = [torch.nn.Parameter(torch.randn(shape, device=asked.device) * 0.02) for shape in shapes]
        for parameter in made:
            parameter.grad = torch.randn_like(parameter)
        return made

    theirs = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    optimizers: dict[str, torch.optim.Optimizer] = {
        "transformers": TransformersAdafactor(parameters(), lr=5e-5, **theirs),
        "torch": torch.optim.Adafactor(parameters(), lr=5e-5),
        "raylm": Adafactor(parameters(), lr=5e-5),
    }
    what = f"Adafactor, {sum(shape.numel() for shape in shapes):,} parameters"
    race(what, asked.device, asked.rounds, {name: optimizer.step for name, optimizer in optimizers.items()})
    print(machine(asked.device))


if __name__ == "__main__":
    main()
