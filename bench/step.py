"""Benchmark a training step of GPT-2, raylm's against transformers': forward and backward pass, Adafactor.

    python bench/step.py [--precision bfloat16] [--stock] [--vocabulary 50257 4096] [--dropout 0.1 0.0] [--profile]
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python bench/step.py
    python bench/step.py --device cuda --model gpt2 --context-length 1024 --batch-size 16

On a CPU, transformers uses eager attention in float32, its default, and raylm `--precision`; on a GPU both run under
bfloat16 autocast, and transformers uses SDPA, as its run_clm does. Weights and random tokens are the same. `--stock`
adds transformers with all that its Trainer offers for speed: bfloat16 (with `--precision bfloat16`), SDPA and
`torch.compile`, which takes a CPU half a minute. Each variant runs in a process of its own. `--profile` prints the
time of a step by operator.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection

import torch
from race import build_parser, describe_machine, race
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.optimization import Adafactor as TransformersAdafactor

from raylm.config.catalog import MODELS
from raylm.data.corpus import IGNORE_INDEX
from raylm.training import layers
from raylm.training.device import keep_freed_blocks
from raylm.training.loss import summed_loss
from raylm.training.optim.adafactor import Adafactor, can_fuse
from raylm.training.validation import LossFn, autocast_loss
from raylm.tuning.trial_process import set_worker_environment

PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::baddbmm_")
SMALL = {"n_embd": 256, "n_layer": 4, "n_head": 4}
ABSOLUTE_STEP = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
LEARNING_RATE = 5e-5

Step = Callable[[], float]
"""Function that runs an optimizer step and returns its loss per token."""


def build_config(args: argparse.Namespace, vocabulary: int, dropout: float) -> GPT2Config:
    """Return the small GPT-2 of these benchmarks, or one of the catalog's shapes."""
    sizes = SMALL
    if args.model:
        shape = MODELS[args.model].shape
        sizes = {"n_embd": shape.hidden_size, "n_layer": shape.num_layers, "n_head": shape.num_heads}
    rates = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), dropout)
    special = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2Config(vocab_size=vocabulary, n_positions=args.context_length, **sizes, **rates, **special)


def list_variants(args: argparse.Namespace) -> dict[str, Callable[[Batch], Step]]:
    """Return functions that build the steps to compare for a batch."""
    eager, fast = ("sdpa", "bfloat16") if args.device == "cuda" else ("eager", "float32"), ("sdpa", args.precision)
    variants = {"transformers": lambda batch: build_peer(batch, *eager)}
    if args.stock:
        variants["best stock"] = lambda batch: build_peer(batch, *fast, compiled=True)
    variants["raylm"] = lambda batch: build_own(batch, args.precision, compiled=args.compile)
    return variants


@dataclass(frozen=True)
class Batch:
    """Model and tokens of a comparison, the same in each process."""

    config: GPT2Config
    inputs: Tensor
    targets: Tensor

    @classmethod
    def build(cls, args: argparse.Namespace, vocabulary: int, dropout: float) -> Batch:
        """Return a batch of random tokens."""
        torch.manual_seed(0)
        inputs_BT = torch.randint(0, vocabulary, (args.batch_size, args.context_length)).to(args.device)
        targets_BT = torch.nn.functional.pad(inputs_BT[:, 1:], (0, 1), value=IGNORE_INDEX)
        return cls(build_config(args, vocabulary, dropout), inputs_BT, targets_BT)

    def build_model(self) -> GPT2LMHeadModel:
        """Return the model, with the same random weights at each call."""
        torch.manual_seed(0)
        return GPT2LMHeadModel(self.config).to(self.inputs.device).train()

    def build_step(self, loss_fn: LossFn, optimizer: torch.optim.Optimizer, precision: str) -> Step:
        """Return a step with a function of the summed loss; it returns the loss per token."""
        num_tokens = int((self.targets != IGNORE_INDEX).sum())

        def step() -> float:
            loss = autocast_loss(loss_fn, self.inputs, self.targets, precision) / num_tokens
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return step


def build_peer(batch: Batch, attention: str, precision: str, *, compiled: bool = False) -> Step:
    """Return a step with transformers' model and optimizer."""
    model = batch.build_model()
    model.set_attn_implementation(attention)
    forward = torch.compile(model) if compiled else model

    def loss_fn(inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        loss: Tensor = forward(input_ids=inputs_BT, labels=inputs_BT, use_cache=False).loss
        return loss * (targets_BT != IGNORE_INDEX).sum()

    return batch.build_step(
        loss_fn, TransformersAdafactor(model.parameters(), lr=LEARNING_RATE, **ABSOLUTE_STEP), precision
    )


def build_own(batch: Batch, precision: str, *, compiled: bool) -> Step:
    """Return a step as in a trial of raylm."""
    model = layers.patch_layers(batch.build_model())
    if compiled:
        layers.compile_blocks(model)
    optimizer = Adafactor(model.parameters(), lr=LEARNING_RATE, fused=can_fuse(list(model.parameters())))
    return batch.build_step(partial(summed_loss, model), optimizer, precision)


class RemoteStep:
    """Step in a process of its own: with its own allocator, and for raylm the settings of a trial's process."""

    def __init__(self, args: argparse.Namespace, name: str, vocabulary: int, dropout: float) -> None:
        """Start the process, and run the first step."""
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=serve, args=(child, args, name, vocabulary, dropout), daemon=True)
        self._process.start()
        child.close()
        self.first_loss: float = self._connection.recv()

    def __call__(self) -> None:
        """Run a step."""
        self._request("step")

    def profile(self) -> None:
        """Print a profile of the step."""
        self._request("profile")

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()

    def _request(self, command: str) -> None:
        self._connection.send(command)
        self._connection.recv()


def serve(connection: Connection, args: argparse.Namespace, name: str, vocabulary: int, dropout: float) -> None:
    """Build a step and run it on request, until the other end is closed."""
    if name == "raylm":
        set_worker_environment()
        keep_freed_blocks()
    torch.set_num_threads(args.threads)
    step = list_variants(args)[name](Batch.build(args, vocabulary, dropout))
    connection.send(step())
    with contextlib.suppress(EOFError):
        while True:
            if connection.recv() == "profile":
                profile(name, step)
            else:
                step()
            connection.send(None)


def profile(name: str, step: Step) -> None:
    """Print the milliseconds of a step by operator, without those that it calls, and the share of matrix products."""
    step()
    with torch.profiler.profile() as profiler:
        for _ in range(3):
            step()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if event.key in PRODUCTS)
    print(f"  {name}: {total / 3000:.0f} ms, {products / total:.0%} matrix products")
    for event in events[:16]:
        milliseconds = event.self_cpu_time_total / 3000
        print(f"    {event.key:44} {milliseconds:8.1f} ms {event.self_cpu_time_total / total:6.1%}  {event.count // 3}")
    sys.stdout.flush()


def main() -> None:
    """Time the variants in turns, for each vocabulary and dropout."""
    parser = build_parser(__doc__)
    parser.add_argument("--model", choices=[name for name in MODELS if name != "gpt2-nano"])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[50257])
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.1, 0.0])
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="of raylm; float32 on a CPU if not set")
    parser.add_argument("--stock", action="store_true", help="add transformers with SDPA and torch.compile")
    parser.add_argument("--compile", action="store_true", help="compile raylm's blocks")
    parser.add_argument("--profile", action="store_true", help="profile the step on a CPU")
    args = parser.parse_args()
    args.precision = args.precision or ("bfloat16" if args.device == "cuda" else "float32")
    torch.set_num_threads(args.threads)
    for vocabulary in args.vocabulary:
        for dropout in args.dropout:
            steps = {name: RemoteStep(args, name, vocabulary, dropout) for name in list_variants(args)}
            label = f"{args.model or '4 x 256'}, {args.precision}, {vocabulary} tokens, dropout {dropout}"
            race(label, "cpu", args.rounds, steps)  # a step ends when the device has computed its loss
            print("  first losses " + ", ".join(f"{name} {step.first_loss:.5f}" for name, step in steps.items()))
            for step in steps.values():
                if args.profile:
                    step.profile()
                step.close()
    print(f"context {args.context_length}, batch {args.batch_size}; {describe_machine(args.device)}")


if __name__ == "__main__":
    main()
