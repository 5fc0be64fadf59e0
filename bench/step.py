"""Benchmark a training step of GPT-2, raylm's against transformers': forward and backward pass, Adafactor.

    python bench/step.py [--vocabulary 50257 4096] [--dropout 0.1 0.0] [--profile]
    python bench/step.py --device cuda --model gpt2 --context-length 1024 --batch-size 16

On a CPU both run in float32, and transformers uses eager attention; on a GPU both run under bfloat16 autocast, and
transformers uses SDPA, as its run_clm does. Weights and random tokens are the same. `--profile` prints the fraction of
matrix products.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from race import build_parser, describe_machine, race
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.optimization import Adafactor as TransformersAdafactor

from raylm.config.catalog import MODELS
from raylm.data.corpus import IGNORE_INDEX
from raylm.training import layers
from raylm.training.loss import summed_loss
from raylm.training.optim.adafactor import Adafactor

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::baddbmm_")
SMALL = {"n_embd": 256, "n_layer": 4, "n_head": 4}


def build_config(args: argparse.Namespace, vocabulary: int, dropout: float) -> GPT2Config:
    """Return the small GPT-2 of these benchmarks, or one of the catalog's shapes."""
    sizes = SMALL
    if args.model:
        shape = MODELS[args.model].shape
        sizes = {"n_embd": shape.hidden_size, "n_layer": shape.num_layers, "n_head": shape.num_heads}
    rates = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), dropout)
    special = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2Config(vocab_size=vocabulary, n_positions=args.context_length, **sizes, **rates, **special)


def build_steps(args: argparse.Namespace, vocabulary: int, dropout: float) -> dict[str, Callable[[], Tensor]]:
    """Return a step of each variant, which returns its loss per token."""
    torch.manual_seed(0)
    theirs, ours = (GPT2LMHeadModel(build_config(args, vocabulary, dropout)) for _ in range(2))
    ours.load_state_dict(theirs.state_dict())
    theirs.set_attn_implementation("sdpa" if args.device == "cuda" else "eager")
    layers.patch_layers(ours)
    if args.compile:
        layers.compile_blocks(ours)
    inputs_BT = torch.randint(0, vocabulary, (args.batch_size, args.context_length)).to(args.device)
    targets_BT = torch.nn.functional.pad(inputs_BT[:, 1:], (0, 1), value=IGNORE_INDEX)
    tokens = args.batch_size * (args.context_length - 1)
    theirs.to(args.device).train()
    ours.to(args.device).train()

    def peer_loss() -> Tensor:
        loss: Tensor = theirs(input_ids=inputs_BT, labels=inputs_BT, use_cache=False).loss
        return loss

    def own_loss() -> Tensor:
        return summed_loss(ours, inputs_BT, targets_BT) / tokens

    def step(loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> Tensor:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.device == "cuda"):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    absolute = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    peer = TransformersAdafactor(theirs.parameters(), lr=5e-5, **absolute)
    own = Adafactor(ours.parameters(), lr=5e-5, compiled=args.compile)
    return {"transformers": lambda: step(peer_loss, peer), "raylm": lambda: step(own_loss, own)}


def profile(name: str, step: Callable[[], object]) -> None:
    """Print the fraction of operator time spent in matrix products, and the largest others."""
    step()
    with torch.profiler.profile() as profiler:
        for _ in range(3):
            step()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if event.key in PRODUCTS)
    others = sorted((e for e in events if e.key not in PRODUCTS), key=lambda event: -event.self_cpu_time_total)[:6]
    rest = ", ".join(f"{event.key.removeprefix('aten::')} {event.self_cpu_time_total / total:.1%}" for event in others)
    print(f"  {name}: {products / total:.0%} matrix products; {rest}", flush=True)


def main() -> None:
    """Time both variants in turns, for each vocabulary and dropout."""
    parser = build_parser(__doc__)
    parser.add_argument("--model", choices=[name for name in MODELS if name != "gpt2-nano"])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[50257])
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.1, 0.0])
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="compile raylm's blocks and optimizer")
    parser.add_argument("--profile", action="store_true", help="profile the step on a CPU")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for vocabulary in args.vocabulary:
        for dropout in args.dropout:
            variants = build_steps(args, vocabulary, dropout)
            losses = {name: step().item() for name, step in variants.items()}
            label = f"{args.model or '4 x 256'}, {vocabulary} tokens, dropout {dropout}"
            race(label, args.device, args.rounds, variants)
            print("  first losses " + ", ".join(f"{name} {loss:.5f}" for name, loss in losses.items()))
            if args.profile:
                for name, step in variants.items():
                    profile(name, step)
    print(f"context {args.context_length}, batch {args.batch_size}; {describe_machine(args.device)}")


if __name__ == "__main__":
    main()
