"""What the benchmarks of the training step share: variants that take turns, and the machine that they ran on."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
import transformers

from raylm.planning.devices import cpu_name


def arguments(description: str | None) -> argparse.ArgumentParser:
    """What all of them can be asked."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a CPU")
    parser.add_argument("--rounds", type=int, default=10, help="how often each takes its turn")
    return parser


def race(what: str, device: str, rounds: int, variants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Lets the variants take turns, so that whatever else runs on the machine slows all of them down alike.

    Prints the median time of each, and the median of how many times faster than the first one it was in a round.

    Returns:
        These ratios.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 2):
        for name, run in variants.items():
            _wait(device)
            started = time.perf_counter()
            run()
            _wait(device)
            if number >= 2:  # the first ones warm up
                seconds[name].append(time.perf_counter() - started)
    peer = next(iter(seconds.values()))
    ratios = {}
    for name, own in seconds.items():
        ratios[name] = statistics.median(theirs / ours for theirs, ours in zip(peer, own, strict=True))
        print(f"{what}  {name:<12}  {statistics.median(own) * 1000:9.1f} ms  {ratios[name]:5.2f}x", flush=True)
    return ratios


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def machine(device: str) -> str:
    """What it ran on, in a line."""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, {versions}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{cpu_name()}, {capability}, {torch.get_num_threads()} threads, {versions}"
