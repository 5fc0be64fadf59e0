"""What trials run on, and how long training takes there: peaks of known GPUs, and a model of the time. No torch.

The time is what the arithmetic and the memory's traffic take at rates that good kernels reach. It is an estimate.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raylm.config.catalog import ModelShape
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import UserError, format_suggestion, safe_repr
from raylm.planning.devices import DEVICES, Device, find_device, list_gpu_names, measure_cpu, resolve_precision
from raylm.planning.memory import MemoryModel
from raylm.results.progress import MicroBatching
from raylm.results.sweep_record import DeviceRecord, SlotRecord
from raylm.units import GIB

GEMM_EFFICIENCY = {"cpu": 0.6, "cuda": 0.7}
"""Share of a card's peak that training's matrix products reach: on a CPU of NumPy's own product, see
bench/plan_accuracy.py; on an H100 the best public kernel for a head and its loss, 698 TFLOP/s (README of
linkedin/Liger-Kernel)."""
BANDWIDTH_EFFICIENCY = 0.9
"""Share of the memory's bandwidth that elementwise kernels reach."""
LAYER_LAUNCH_SECONDS = {"cpu": 1e-3, "cuda": 4e-4}
"""Time to start the kernels of one layer, forward and backward. A GPU computes meanwhile, a CPU does not."""
ACTIVATION_TRAFFIC_BYTES = 116, 6
"""Moved besides the matrix products, in bfloat16: per token, layer and unit of width, per token and word."""
PARAMETER_TRAFFIC_BYTES = 36
"""Moved once a step per parameter: gradients cleared, made and clipped, and the optimizer's passes."""
MAX_TRIALS_PER_GPU = 8
"""Trials that share a card, where that is left to raylm."""
MIN_SHARING_SPEEDUP = 1.1
"""How much more must get done on a card for another trial to share it."""
RAY_GPU_UNITS = 10_000
"""Ray counts a GPU in so many parts."""


@dataclass(frozen=True)
class Placement:
    """What one trial runs on."""

    card: Device
    share: float
    """Of a card, or how many: 0.5, 1, 2."""
    at_a_time: int
    """Trials."""
    precision: str
    """`float32` or `bfloat16`."""
    most_sharing: int = 1
    """Trials that may share a card, where that is left to raylm."""

    def with_sharing(self, memory_model: MemoryModel) -> Placement:
        """This card for one trial, or shared by as many like it as `parts` says."""
        number = trials_per_gpu(self, memory_model)
        return replace(self, share=self.share / number, at_a_time=self.at_a_time * number, most_sharing=1)

    @property
    def available_bytes(self) -> float:
        """Memory of a trial, or of each of its ranks."""
        return self.card.gib * GIB * min(self.share, 1)

    def __str__(self) -> str:
        """In words, for a person."""
        card, share = self.card, self.share
        measured = " (measured now)" if card.device == "cpu" else ""
        taken = "" if share == 1 else f", {share:g} of {'them' if share > 1 else 'it'} for a trial"
        taken = ", shared by trials that leave it idle" if self.most_sharing > 1 else taken
        tflops = card.peak_tflops(self.precision)
        return (
            f"{card.name}: {tflops:,.{0 if tflops >= 10 else 2}f} TFLOP/s in {self.precision}, "
            f"{card.gb_per_s:,.0f} GB/s{measured}, {card.gib:.1f} GiB{taken}"
        )

    @property
    def world_size(self) -> int:
        """Processes that train a trial."""
        return max(1, int(self.share))

    def estimate_training_seconds(
        self, memory_model: MemoryModel, micro_batching: MicroBatching, tokens: int, steps: int
    ) -> float:
        """Time in optimizer steps, roughly: evaluations, checkpoints and the start are not in it."""
        shape, device = memory_model.shape, self.card.device
        flops = (
            tokens
            * shape.training_flops_per_token(memory_model.config.context_length)
            * (4 / 3 if micro_batching.recompute else 1)
        )
        a_layer, a_word = ACTIVATION_TRAFFIC_BYTES
        moved = tokens * (a_layer * shape.num_layers * shape.hidden_size + a_word * shape.vocab_size)
        moved *= 1 if self.precision == "bfloat16" else 2
        peak = self.card.peak_tflops(self.precision) * 1e12 * GEMM_EFFICIENCY[device]
        stream = self.card.gb_per_s * 1e9 * BANDWIDTH_EFFICIENCY
        computing = (flops / peak + moved / stream) / self.share
        computing += steps * shape.num_parameters * PARAMETER_TRAFFIC_BYTES / stream / min(self.share, 1)
        starting = (
            steps
            * -(-memory_model.max_rank_windows // micro_batching.micro_batch_size)
            * shape.num_layers
            * LAYER_LAUNCH_SECONDS[device]
        )
        return max(computing, starting) if device == "cuda" else computing + starting


def trials_per_gpu(placement: Placement, memory_model: MemoryModel) -> int:
    """How many trials like this one a card is shared by: as few as get (nearly) the most done, if all fit.

    A small trial leaves a GPU idle while its kernels are started, and others compute meanwhile. All go through the
    model as one with the whole card does: no trial takes a smaller micro-batch for the sake of sharing.
    """
    whole, tokens = (
        memory_model.choose_micro_batching(placement.available_bytes),
        memory_model.config.batch_size * memory_model.config.context_length,
    )
    numbers = range(1, placement.most_sharing + 1)
    fitting = [
        1,
        *(
            number
            for number in numbers
            if memory_model.choose_micro_batching(placement.available_bytes / number) == whole
        ),
    ]
    shared = {number: replace(placement, share=placement.share / number) for number in fitting}
    done = {
        number: number / one.estimate_training_seconds(memory_model, whole, tokens, 1) for number, one in shared.items()
    }
    return next(number for number in fitting if done[number] * MIN_SHARING_SPEEDUP >= max(done.values()))


def gpu_fraction(
    devices: Sequence[tuple[Device, int]], shape: ModelShape | None, config: TrialConfig, precision: str
) -> float:
    """A trial's share of any of these cards, each with the number of trials that may share it."""
    if shape is None or not devices:
        return 1.0
    slots = [
        Placement(card, 1.0, 1, resolve_precision(precision, card), min(most, MAX_TRIALS_PER_GPU))
        for card, most in devices
    ]
    number = min(trials_per_gpu(slot, MemoryModel(shape, config, "cuda", slot.precision)) for slot in slots)
    return int(RAY_GPU_UNITS / number) / RAY_GPU_UNITS


def find_placement(resources: Resources, precision: str, gpu: str | None = None) -> Placement | None:
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
        card, cards = parse_gpu(gpu)
        if resources.gpus == 0:
            raise UserError(
                f"--gpu: got {safe_repr(gpu)}, but trials of this sweep take no GPU: resources=Resources(gpus=0)"
            )
        if share > cards:
            wanted = f"{share:g}x{card.cli_name}"
            raise UserError(f"--gpu: got {safe_repr(gpu)}, but a trial takes {share:g} GPUs; say --gpu {wanted}")
    else:
        if is_cpu_only(resources):
            return _cpu_placement(resources, precision)
        names = list_gpu_names()
        found, cards = find_device(names[0]) if names else None, len(names)
        if found is None:
            return None
        card = found
    at_a_time = cards * int(1 / share + 1e-9) if share < 1 else cards // int(share)
    of_cpus = MAX_TRIALS_PER_GPU if gpu is not None else (os.cpu_count() or 1) // cards // resources.cpus
    return Placement(
        card,
        share,
        at_a_time,
        resolve_precision(precision, card),
        max(1, min(of_cpus, MAX_TRIALS_PER_GPU)) if shared else 1,
    )


def is_cpu_only(resources: Resources) -> bool:
    """Whether trials on this machine have its processors alone."""
    return resources.gpus == 0 or (resources.gpus in (None, "auto") and not list_gpu_names())


def _cpu_placement(resources: Resources, precision: str) -> Placement:
    cores = os.cpu_count() or 1
    share = min(1.0, resources.cpus / cores)
    cpu = measure_cpu()
    return Placement(cpu, share, max(1, cores // resources.cpus), resolve_precision(precision, cpu))


def parse_gpu(gpu: str) -> tuple[Device, int]:
    """The GPU of a name on the command line, and how many.

    Raises:
        UserError: if it is not known.
    """
    parts = re.fullmatch(r"(?:([1-9]\d{0,4})x)?(.+)", gpu.strip().lower())
    name = parts[2] if parts else gpu
    options = {card.cli_name: card for card in DEVICES}
    if name not in options:
        hint = format_suggestion(name, options)
        raise UserError(
            f"--gpu: got {safe_repr(gpu)}; expected one of {', '.join(options)}, or as 8x{DEVICES[0].cli_name}{hint}"
        )
    return options[name], int(parts[1] or 1) if parts else 1


def placement_from_record(slot: SlotRecord) -> Placement:
    """Return the placement that a launch has recorded."""
    card = slot.card
    device = Device(card.name, card.bfloat16, card.float32, card.gb_per_s, card.gib, card.device)
    return Placement(device, slot.share, slot.at_a_time, slot.precision, slot.most_sharing)


def placement_to_record(placement: Placement) -> SlotRecord:
    """Return a placement as it is recorded of a launch."""
    card = placement.card
    device = DeviceRecord(card.name, card.bfloat16, card.float32, card.gb_per_s, card.gib, card.device)
    return SlotRecord(device, placement.share, placement.at_a_time, placement.precision, placement.most_sharing)
