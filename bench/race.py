"""Shared parts of the training step benchmarks: timing variants in turns, and a description of the machine."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
import transformers

from raylm.planning.devices import cpu_name


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all of these benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each variant")
    return parser


def race(label: str, device: str, rounds: int, variants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Time the variants in turns, so that other load on the machine slows all of them down equally.

    Print the median time of each, and the median over rounds of its speedup relative to the first variant.

    Returns:
        The speedups by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 2):
        for name, run in variants.items():
            _synchronize(device)
            started = time.perf_counter()
            run()
            _synchronize(device)
            if number >= 2:  # the first rounds warm up
                seconds[name].append(time.perf_counter() - started)
    peer = next(iter(seconds.values()))
    ratios = {}
    for name, own in seconds.items():
        ratios[name] = statistics.median(theirs / ours for theirs, ours in zip(peer, own, strict=True))
        print(f"{label}  {name:<12}  {statistics.median(own) * 1000:9.1f} ms  {ratios[name]:5.2f}x", flush=True)
    return ratios


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def describe_machine(device: str) -> str:
    """Return device and versions, as one line."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {versions}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()}, {capability}, {torch.get_num_threads()} threads, {versions}"
