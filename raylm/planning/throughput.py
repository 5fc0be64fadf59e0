"""Placement of trials on devices, and the time that training takes there. No torch.

The time is an estimate: on a CPU that of the arithmetic and of the memory traffic, on a GPU that of `GpuTimeModel`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from raylm.config.catalog import ModelShape
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import UserError, format_suggestion, safe_repr
from raylm.machine import allowed_cpus
from raylm.planning.devices import DEVICES, Device, find_device, list_gpu_names, measure_cpu, resolve_precision
from raylm.planning.gpu_time import BANDWIDTH_EFFICIENCY, GpuTimeModel
from raylm.planning.memory import MemoryModel
from raylm.results.progress import MicroBatching
from raylm.results.sweep_record import DeviceRecord, SlotRecord
from raylm.units import GIB

CPU_GEMM_EFFICIENCY = 0.6
"""Fraction of the rate of NumPy's own matrix product that training's products reach: bench/plan_accuracy.py."""
CPU_LAYER_SECONDS = 1e-3
"""Time to launch the operations of one layer on a CPU, forward and backward; nothing is computed meanwhile."""
CPU_LAYER_TRAFFIC_BYTES = 116
"""Memory traffic besides the matrix products, in bfloat16: bytes per token, layer and unit of width."""
CPU_LOGIT_TRAFFIC_BYTES = 6
"""Memory traffic of the head, in bfloat16: bytes per token and entry of the vocabulary."""
CPU_PARAMETER_TRAFFIC_BYTES = 36
"""Memory traffic per parameter and step: gradients cleared, computed and clipped, and the optimizer's passes."""
MAX_TRIALS_PER_GPU = 8
"""Limit of trials that share a GPU with `Resources(gpus="auto")`."""
MIN_SHARING_SPEEDUP = 1.1
"""Factor by which throughput must grow for more trials to share a GPU."""
RAY_GPU_UNITS = 10_000
"""Smallest fraction of a GPU that Ray counts, as its inverse."""


@dataclass(frozen=True)
class Placement:
    """Devices of one trial, and the number of trials that run at a time."""

    device: Device
    devices_per_trial: float
    """Number of devices, or a fraction of one: 0.5, 1, 2."""
    concurrent_trials: int
    precision: str
    """`float32`, `bfloat16` or `float16`."""
    max_trials_per_device: int = 1
    """Limit of trials that share a device with `Resources(gpus="auto")`; 1: no sharing beyond `devices_per_trial`."""

    @property
    def world_size(self) -> int:
        """Number of processes (ranks) that train a trial."""
        return max(1, int(self.devices_per_trial))

    @property
    def available_bytes(self) -> float:
        """Device memory of a trial, or of each of its ranks."""
        return self.device.memory_gib * GIB * min(self.devices_per_trial, 1)

    def memory_model(self, shape: ModelShape, config: TrialConfig) -> MemoryModel:
        """Return the memory model of a trial on these devices."""
        return MemoryModel(shape, config, self.device.type, self.precision, self.world_size)

    def with_sharing(self, memory_model: MemoryModel) -> Placement:
        """Return the placement with each device shared by as many such trials as `trials_per_gpu` returns."""
        number = trials_per_gpu(self, memory_model)
        return replace(
            self,
            devices_per_trial=self.devices_per_trial / number,
            concurrent_trials=self.concurrent_trials * number,
            max_trials_per_device=1,
        )

    def estimate_training_seconds(
        self,
        memory_model: MemoryModel,
        micro_batching: MicroBatching,
        tokens: int,
        steps: int,
        total_steps: int | None = None,
    ) -> float:
        """Return the estimated time of optimizer steps, without evaluations, checkpoints and the start.

        Args:
            memory_model: shape and config of the trial.
            micro_batching: its micro-batches.
            tokens: tokens of these steps.
            steps: number of steps.
            total_steps: steps of the whole trial; None: these are all. A GPU's kernels are compiled in long trials.
        """
        if self.device.type == "cuda":
            return self.gpu_time_model(memory_model, micro_batching).training_seconds(tokens, steps, total_steps)
        shape = memory_model.shape
        flops = tokens * shape.training_flops_per_token(memory_model.config.context_length)
        flops *= 4 / 3 if micro_batching.recompute else 1
        traffic = CPU_LAYER_TRAFFIC_BYTES * shape.num_layers * shape.hidden_size
        traffic = (traffic + CPU_LOGIT_TRAFFIC_BYTES * shape.vocab_size) * tokens
        traffic *= 2 if self.precision == "float32" else 1
        flops_per_s = self.device.peak_tflops(self.precision) * 1e12 * CPU_GEMM_EFFICIENCY
        bytes_per_s = self.device.gb_per_s * 1e9 * BANDWIDTH_EFFICIENCY
        computing = (flops / flops_per_s + traffic / bytes_per_s) / self.devices_per_trial
        update_bytes = steps * shape.num_parameters * CPU_PARAMETER_TRAFFIC_BYTES
        updating = update_bytes / bytes_per_s / min(self.devices_per_trial, 1)
        micro_batches = steps * -(-memory_model.max_rank_windows // micro_batching.micro_batch_size)
        return computing + updating + micro_batches * shape.num_layers * CPU_LAYER_SECONDS

    def gpu_time_model(self, memory_model: MemoryModel, micro_batching: MicroBatching) -> GpuTimeModel:
        """Return the time model of a trial on these GPUs."""
        return GpuTimeModel(self.device, memory_model, micro_batching, min(self.devices_per_trial, 1.0))

    def __str__(self) -> str:
        device, per_trial = self.device, self.devices_per_trial
        tflops = device.peak_tflops(self.precision)
        measured = " (measured now)" if device.type == "cpu" else ""
        if self.max_trials_per_device > 1:
            sharing = ", shared by trials that leave it idle"
        else:
            unit = "GPU" if device.type == "cuda" else "machine"
            amount = f"{per_trial:g} {unit}s" if per_trial > 1 else f"{per_trial:g} of a {unit}"
            sharing = "" if per_trial == 1 else f", {amount} per trial"
        return (
            f"{device.name}: {tflops:,.{0 if tflops >= 10 else 2}f} TFLOP/s in {self.precision}, "
            f"{device.gb_per_s:,.0f} GB/s{measured}, {device.memory_gib:.1f} GiB{sharing}"
        )


# ---- trials that share a GPU --------------------------------------------------------------------------------------


def trials_per_gpu(placement: Placement, memory_model: MemoryModel) -> int:
    """Return how many such trials share a GPU: the fewest with (nearly) the best throughput, if all fit.

    A small trial leaves a GPU idle while the host prepares a step; other trials compute meanwhile. No trial takes a
    smaller micro-batch for the sake of sharing: all use the one that fits a whole GPU.
    """
    alone = memory_model.choose_micro_batching(placement.available_bytes)
    tokens = memory_model.config.batch_size * memory_model.config.context_length
    throughputs = {}
    for number in range(1, max(1, placement.max_trials_per_device) + 1):
        if number == 1 or memory_model.choose_micro_batching(placement.available_bytes / number) == alone:
            shared = replace(placement, devices_per_trial=placement.devices_per_trial / number)
            throughputs[number] = number / shared.estimate_training_seconds(memory_model, alone, tokens, steps=1)
    best = max(throughputs.values())
    return next(number for number, throughput in throughputs.items() if throughput * MIN_SHARING_SPEEDUP >= best)


def gpu_fraction(
    devices: Sequence[tuple[Device, int]], shape: ModelShape | None, config: TrialConfig, precision: str
) -> float:
    """Return the fraction of a GPU that a trial takes, the same on each of several kinds.

    Args:
        devices: GPUs, each with the number of trials that may share it.
        shape: shape of the trial's model; None if it is unknown, and the GPU is not shared.
        precision: `auto`, `float32`, `bfloat16` or `float16`.
    """
    if shape is None or not devices:
        return 1.0
    numbers = []
    for device, limit in devices:
        placement = Placement(device, 1.0, 1, resolve_precision(precision, device), min(limit, MAX_TRIALS_PER_GPU))
        numbers.append(trials_per_gpu(placement, placement.memory_model(shape, config)))
    return int(RAY_GPU_UNITS / min(numbers)) / RAY_GPU_UNITS


# ---- the devices of a sweep ---------------------------------------------------------------------------------------


def find_placement(resources: Resources, precision: str, gpu: str | None = None) -> Placement | None:
    """Return the placement of trials: on GPUs named on the command line, else on this machine's, else on its CPU.

    Args:
        resources: resources of a trial.
        precision: `auto`, `float32`, `bfloat16` or `float16`.
        gpu: GPUs as `a100-80gb` or `8xa100-80gb`.

    Returns:
        None if this machine has fewer GPUs than a trial takes, or they are not known.

    Raises:
        UserError: if `gpu` is unknown, or trials cannot run on it.
    """
    if gpu is None and is_cpu_only(resources):
        cpu, cores = measure_cpu(), allowed_cpus()
        cpu_fraction = min(1.0, resources.cpus / cores)
        return Placement(cpu, cpu_fraction, max(1, cores // resources.cpus), resolve_precision(precision, cpu))
    per_trial = resources.gpus if isinstance(resources.gpus, float) and resources.gpus else 1.0
    if gpu is not None:
        device, count = parse_gpu(gpu)
        _check_gpu(gpu, device, count, resources, per_trial)
        max_trials = MAX_TRIALS_PER_GPU
    else:
        names = list_gpu_names()
        known = find_device(names[0]) if names else None
        if known is None or per_trial > len(names):
            return None
        device, count = known, len(names)
        max_trials = min(MAX_TRIALS_PER_GPU, allowed_cpus() // count // resources.cpus)
    return Placement(
        device,
        per_trial,
        count * int(1 / per_trial + 1e-9) if per_trial < 1 else count // int(per_trial),
        resolve_precision(precision, device),
        max(1, max_trials) if resources.gpus == "auto" else 1,
    )


def is_cpu_only(resources: Resources) -> bool:
    """Return whether trials on this machine run on its CPU."""
    return resources.gpus == 0 or (resources.gpus in (None, "auto") and not list_gpu_names())


def _check_gpu(gpu: str, device: Device, count: int, resources: Resources, per_trial: float) -> None:
    """Raise a UserError unless trials can run on the GPUs named on the command line."""
    if resources.gpus == 0:
        raise UserError(
            f"--gpu: got {safe_repr(gpu)}, but trials of this sweep use no GPU: resources=Resources(gpus=0)"
        )
    if per_trial > count:
        required = f"--gpu {per_trial:g}x{device.cli_name}"
        raise UserError(f"--gpu: got {safe_repr(gpu)}, but a trial uses {per_trial:g} GPUs; expected {required}")


def parse_gpu(gpu: str) -> tuple[Device, int]:
    """Return the GPU for a name on the command line, and their number.

    Raises:
        UserError: if the name is unknown.
    """
    match = re.fullmatch(r"(?:([1-9]\d{0,4})\s*x\s*)?(.+)", gpu.strip().lower())
    options = {device.cli_name: device for device in DEVICES}
    name = _find_gpu_name(match[2] if match else gpu, options)
    if name not in options:
        same_number = [option for option in options if re.findall(r"\d+", option) == re.findall(r"\d+", name)]
        hint = format_suggestion(name, same_number if re.search(r"\d{3}", name) else options)
        raise UserError(
            f"--gpu: got {safe_repr(gpu)}; expected one of {', '.join(options)}, or as 8x{DEVICES[0].cli_name}{hint}"
        )
    return options[name], int(match[1] or 1) if match else 1


def _find_gpu_name(text: str, options: Iterable[str]) -> str:
    """Return the known name of a GPU that a text means, as `rtx-4090` for `4090` or `NVIDIA RTX4090`, or the text."""

    def plain(name: str) -> str:
        return re.sub(r"nvidia|geforce|tesla|rtx|[\s_-]", "", name)

    return next((option for option in options if plain(text) and plain(option) == plain(text)), text)


def placement_from_record(record: SlotRecord) -> Placement:
    """Return the placement that a launch has recorded."""
    card = record.card
    device = Device(card.name, card.bfloat16, card.float32, card.gb_per_s, card.gib, card.device, card.float16)
    return Placement(device, record.share, record.at_a_time, record.precision, record.most_sharing)


def placement_to_record(placement: Placement) -> SlotRecord:
    """Return the record of a placement in sweep.json."""
    device = placement.device
    return SlotRecord(
        card=DeviceRecord(
            name=device.name,
            bfloat16=device.bfloat16_tflops,
            float16=device.float16_tflops,
            float32=device.float32_tflops,
            gb_per_s=device.gb_per_s,
            gib=device.memory_gib,
            device=device.type,
        ),
        share=placement.devices_per_trial,
        at_a_time=placement.concurrent_trials,
        precision=placement.precision,
        most_sharing=placement.max_trials_per_device,
    )
