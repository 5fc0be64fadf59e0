"""What trials run on, and how long training takes there: peaks of known GPUs, and a model of the time. No torch.

The time is what the arithmetic and the memory's traffic take at rates that good kernels reach. It is an estimate.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raylm.catalog import Shape
from raylm.config import Resources, TrialConfig
from raylm.errors import UserError, nearest, show
from raylm.guard import machine_memory
from raylm.memory import Fit, Workload

GEMM_SHARE = {"cpu": 0.6, "cuda": 0.7}
"""Share of a card's peak that training's matrix products reach: on a CPU of NumPy's own product, see
bench/plan_accuracy.py; on an H100 the best public kernel for a head and its loss, 698 TFLOP/s (README of
linkedin/Liger-Kernel)."""
STREAM_SHARE = 0.9
"""Share of the memory's bandwidth that elementwise kernels reach."""
LAYER_SECONDS = {"cpu": 1e-3, "cuda": 4e-4}
"""Time to start the kernels of one layer, forward and backward. A GPU computes meanwhile, a CPU does not."""
TRAFFIC_BYTES = 116, 6
"""Moved besides the matrix products, in bfloat16: per token, layer and unit of width, per token and word."""
PARAMETER_BYTES = 36
"""Moved once a step per parameter: gradients cleared, made and clipped, and the optimizer's passes."""
MOST_SHARING = 8
"""Trials that share a card, where that is left to raylm."""
WORTH_SHARING = 1.1
"""How much more must get done on a card for another trial to share it."""
RAY_UNITS = 10_000
"""Ray counts a GPU in so many parts."""
MEASURING_SECONDS = 0.2
"""Time for each of the two peaks of a CPU."""
GPU_FILES = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver on Linux tells of its GPUs."""


@dataclass(frozen=True)
class Card:
    """A GPU, or this machine's CPU: what time and memory on it follow from."""

    name: str
    """Words that `torch.cuda.get_device_name` has for it."""
    bfloat16: float | None
    """Dense matrix products with float32 sums, TFLOP/s; None: it has no such units."""
    float32: float
    """Matrix products in full float32, TFLOP/s."""
    gb_per_s: float
    """Bandwidth of its memory."""
    gib: float
    """Memory that programs see."""
    device: str = "cuda"
    """`cuda` or `cpu`."""

    @property
    def option(self) -> str:
        """Its name on the command line."""
        return self.name.lower().replace(" ", "-")

    def tflops(self, precision: str) -> float:
        """Peak of its matrix products."""
        return self.bfloat16 if precision == "bfloat16" and self.bfloat16 else self.float32


CARDS = (
    # NVIDIA's data sheets; memory as torch tells it
    Card("T4", None, 8.1, 320, 14.6),
    Card("V100 32GB", None, 15.7, 900, 31.7),
    Card("V100", None, 15.7, 900, 15.8),
    Card("A10G", 70, 35.0, 600, 22.0),
    Card("L4", 121, 30.3, 300, 22.0),
    Card("RTX A6000", 155, 38.7, 768, 47.4),
    Card("L40S", 362, 91.6, 864, 44.4),
    Card("A100 80GB", 312, 19.5, 2039, 79.2),
    Card("A100", 312, 19.5, 1555, 39.4),
    Card("H100 PCIe", 756, 51.2, 2000, 79.2),
    Card("H100", 989, 66.9, 3350, 79.2),
    Card("H200", 989, 66.9, 4800, 139.8),
    Card("B200", 2250, 75.0, 8000, 178.3),
    Card("RTX 3090", 71, 35.6, 936, 23.6),
    Card("RTX 4090", 165, 82.6, 1008, 23.5),
)
"""Of two that fit a device's name the first is meant."""


@dataclass(frozen=True)
class Slot:
    """What one trial runs on."""

    card: Card
    share: float
    """Of a card, or how many: 0.5, 1, 2."""
    at_a_time: int
    """Trials."""
    precision: str
    """`float32` or `bfloat16`."""
    most_sharing: int = 1
    """Trials that may share a card, where that is left to raylm."""

    def of(self, work: Workload) -> Slot:
        """This card for one trial, or shared by as many like it as `parts` says."""
        number = parts(self, work)
        return replace(self, share=self.share / number, at_a_time=self.at_a_time * number, most_sharing=1)

    @property
    def available_bytes(self) -> float:
        """Memory of a trial, or of each of its ranks."""
        return self.card.gib * 2**30 * min(self.share, 1)

    def __str__(self) -> str:
        """In words, for a person."""
        card, share = self.card, self.share
        measured = " (measured now)" if card.device == "cpu" else ""
        taken = "" if share == 1 else f", {share:g} of {'them' if share > 1 else 'it'} for a trial"
        taken = ", shared by trials that leave it idle" if self.most_sharing > 1 else taken
        tflops = card.tflops(self.precision)
        return (
            f"{card.name}: {tflops:,.{0 if tflops >= 10 else 2}f} TFLOP/s in {self.precision}, "
            f"{card.gb_per_s:,.0f} GB/s{measured}, {card.gib:.1f} GiB{taken}"
        )

    @property
    def ranks(self) -> int:
        """Processes that train a trial."""
        return max(1, int(self.share))

    def training_seconds(self, work: Workload, fit: Fit, tokens: int, steps: int) -> float:
        """Time in optimizer steps, roughly: evaluations, checkpoints and the start are not in it."""
        shape, device = work.shape, self.card.device
        flops = tokens * shape.training_flops_per_token(work.trial.context_length) * (4 / 3 if fit.recompute else 1)
        a_layer, a_word = TRAFFIC_BYTES
        moved = tokens * (a_layer * shape.layers * shape.width + a_word * shape.vocabulary)
        moved *= 1 if self.precision == "bfloat16" else 2
        peak = self.card.tflops(self.precision) * 1e12 * GEMM_SHARE[device]
        stream = self.card.gb_per_s * 1e9 * STREAM_SHARE
        computing = (flops / peak + moved / stream) / self.share
        computing += steps * shape.parameters * PARAMETER_BYTES / stream / min(self.share, 1)
        starting = steps * -(-work.share // fit.micro_batch_size) * shape.layers * LAYER_SECONDS[device]
        return max(computing, starting) if device == "cuda" else computing + starting


def parts(slot: Slot, work: Workload) -> int:
    """How many trials like this one a card is shared by: as few as get (nearly) the most done, if all fit.

    A small trial leaves a GPU idle while its kernels are started, and others compute meanwhile. All go through the
    model as one with the whole card does: no trial takes a smaller micro-batch for the sake of sharing.
    """
    whole, tokens = work.fit(slot.available_bytes), work.trial.batch_size * work.trial.context_length
    numbers = range(1, slot.most_sharing + 1)
    fitting = [1, *(number for number in numbers if work.fit(slot.available_bytes / number) == whole)]
    shared = {number: replace(slot, share=slot.share / number) for number in fitting}
    done = {number: number / one.training_seconds(work, whole, tokens, 1) for number, one in shared.items()}
    return next(number for number in fitting if done[number] * WORTH_SHARING >= max(done.values()))


def share(cards: Sequence[tuple[Card, int]], shape: Shape | None, trial: TrialConfig, precision: str) -> float:
    """A trial's share of any of these cards, each with the number of trials that may share it."""
    if shape is None or not cards:
        return 1.0
    slots = [Slot(card, 1.0, 1, _kind(card, precision), min(most, MOST_SHARING)) for card, most in cards]
    number = min(parts(slot, Workload(shape, trial, "cuda", slot.precision)) for slot in slots)
    return int(RAY_UNITS / number) / RAY_UNITS


def _kind(card: Card, precision: str) -> str:
    return precision if precision != "auto" else "bfloat16" if card.bfloat16 else "float32"


def slot(resources: Resources, precision: str, gpu: str | None = None) -> Slot | None:
    """What a trial runs on: GPUs named on the command line, else those of this machine, else its CPU.

    Args:
        gpu: as `a100-80gb`, or `8xa100-80gb` for several.

    Returns:
        None where the GPUs that a trial takes are not here, or not known.

    Raises:
        UserError: if `gpu` is not known, or trials cannot run on it.
    """
    shared = resources.gpus == "auto"
    share = resources.gpus if isinstance(resources.gpus, float) and resources.gpus else 1.0
    if gpu is not None:
        card, cards = named(gpu)
        if resources.gpus == 0:
            raise UserError(
                f"--gpu: got {show(gpu)}, but trials of this sweep take no GPU: resources=Resources(gpus=0)"
            )
        if share > cards:
            wanted = f"{share:g}x{card.option}"
            raise UserError(f"--gpu: got {show(gpu)}, but a trial takes {share:g} GPUs; say --gpu {wanted}")
    else:
        if on_cpu(resources):
            return _on_cpu(resources, precision)
        names = gpus_here()
        found, cards = known(names[0]) if names else None, len(names)
        if found is None:
            return None
        card = found
    at_a_time = cards * int(1 / share + 1e-9) if share < 1 else cards // int(share)
    of_cpus = MOST_SHARING if gpu is not None else (os.cpu_count() or 1) // cards // resources.cpus
    return Slot(card, share, at_a_time, _kind(card, precision), max(1, min(of_cpus, MOST_SHARING)) if shared else 1)


def on_cpu(resources: Resources) -> bool:
    """Whether trials on this machine have its processors alone."""
    return resources.gpus == 0 or (resources.gpus in (None, "auto") and not gpus_here())


def _on_cpu(resources: Resources, precision: str) -> Slot:
    cores = os.cpu_count() or 1
    share = min(1.0, resources.cpus / cores)
    return Slot(this_cpu(), share, max(1, cores // resources.cpus), "float32" if precision == "auto" else precision)


def named(gpu: str) -> tuple[Card, int]:
    """The GPU of a name on the command line, and how many.

    Raises:
        UserError: if it is not known.
    """
    parts = re.fullmatch(r"(?:([1-9]\d{0,4})x)?(.+)", gpu.strip().lower())
    name = parts[2] if parts else gpu
    options = {card.option: card for card in CARDS}
    if name not in options:
        hint = nearest(name, options)
        raise UserError(
            f"--gpu: got {show(gpu)}; expected one of {', '.join(options)}, or as 8x{CARDS[0].option}{hint}"
        )
    return options[name], int(parts[1] or 1) if parts else 1


def known(device_name: str) -> Card | None:
    """The GPU that a driver or torch calls so."""
    words = set(re.split(r"[^a-z0-9]+", device_name.lower()))
    return next((card for card in CARDS if words >= set(card.name.lower().split())), None)


def gpus_here() -> list[str]:
    """The names of this machine's NVIDIA GPUs, without a library or a process of theirs."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(GPU_FILES.glob("*/information"))]
    return [found[1].strip() for text in texts if (found := re.search(r"^Model:(.*)", text, re.MULTILINE))]


def cpu_name() -> str:
    """The processor's own name, where Linux tells it."""
    try:
        found = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


@functools.cache
def this_cpu() -> Card:
    """This machine's CPU, its peaks measured with NumPy: a matrix product in float32, a copy, on all cores."""
    side, size = 1024, 2**24
    one, other = np.ones((2, side, side), np.float32)
    source, copied = np.ones((2, size), np.float32)
    tflops = 2 * side**3 / _fastest(lambda: one @ other) / 1e12
    gb_per_s = 2 * source.nbytes / _fastest(lambda: np.copyto(copied, source)) / 1e9
    return Card(cpu_name(), None, tflops, gb_per_s, machine_memory()[1] / 2**30, device="cpu")


def _fastest(work: Callable[[], Any]) -> float:
    """Seconds of the quickest of several runs."""
    work()
    best, end = float("inf"), time.perf_counter() + MEASURING_SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def recorded(slot: Any) -> Slot | None:
    """The slot of which `dataclasses.asdict` was written down; None where none was, or it cannot be understood."""
    try:
        made = Slot(**{**slot, "card": Card(**slot["card"])})
        card = made.card
        numbers = (made.share, made.at_a_time, card.float32, card.tflops(made.precision), card.gb_per_s, card.gib)
        understood = card.device in GEMM_SHARE and all(0 < number < float("inf") for number in numbers)
    except (TypeError, KeyError, ValueError):
        return None
    return made if understood else None
