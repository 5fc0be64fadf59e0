"""Devices that trials run on: peaks of known GPUs, this machine's CPU and memory."""

from __future__ import annotations

import functools
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from raylm import numerics
from raylm.numerics import CPUINFO_FILE, cpu_has_bfloat16
from raylm.units import GIB

BENCHMARK_SECONDS = 0.2
"""Time for each of the two peaks of a CPU."""
CPU_BFLOAT16_SPEEDUP = 2.0
"""Matrix products per second in bfloat16 over those in float32: an AVX512-BF16 instruction does two of them per lane.

AMX does more, so that estimates for it are too long."""
NVIDIA_GPUS_DIR = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's driver on Linux tells of its GPUs."""


@dataclass(frozen=True)
class Device:
    """A GPU, or this machine's CPU: what time and memory on it follow from."""

    name: str
    """Words that `torch.cuda.get_device_name` has for it."""
    bfloat16: float | None
    """Peak of dense matrix products in bfloat16 with float32 sums, in TFLOP/s; None if they would be emulated."""
    float32: float
    """Matrix products in full float32, TFLOP/s."""
    gb_per_s: float
    """Bandwidth of its memory."""
    gib: float
    """Memory that programs see."""
    device: str = "cuda"
    """`cuda` or `cpu`."""

    @property
    def cli_name(self) -> str:
        """Its name on the command line."""
        return self.name.lower().replace(" ", "-")

    def peak_tflops(self, precision: str) -> float:
        """Peak of its matrix products."""
        return self.bfloat16 if precision == "bfloat16" and self.bfloat16 else self.float32


DEVICES = (
    # NVIDIA's data sheets; memory as torch tells it
    Device("T4", None, 8.1, 320, 14.6),
    Device("V100 32GB", None, 15.7, 900, 31.7),
    Device("V100", None, 15.7, 900, 15.8),
    Device("A10G", 70, 35.0, 600, 22.0),
    Device("L4", 121, 30.3, 300, 22.0),
    Device("RTX A6000", 155, 38.7, 768, 47.4),
    Device("L40S", 362, 91.6, 864, 44.4),
    Device("A100 80GB", 312, 19.5, 2039, 79.2),
    Device("A100", 312, 19.5, 1555, 39.4),
    Device("H100 PCIe", 756, 51.2, 2000, 79.2),
    Device("H100", 989, 66.9, 3350, 79.2),
    Device("H200", 989, 66.9, 4800, 139.8),
    Device("B200", 2250, 75.0, 8000, 178.3),
    Device("RTX 3090", 71, 35.6, 936, 23.6),
    Device("RTX 4090", 165, 82.6, 1008, 23.5),
)
"""Of two that fit a device's name the first is meant."""


def resolve_precision(requested: str, device: Device) -> str:
    """Return the precision that a trial trains in on a device: `auto` is bfloat16 if the device has it, else float32.

    The same rule as `raylm.training.device.resolve_precision`, for a device that may not be in this machine.
    """
    return numerics.resolve_precision(requested, device.bfloat16 is not None)


def find_device(device_name: str) -> Device | None:
    """The GPU that a driver or torch calls so."""
    words = set(re.split(r"[^a-z0-9]+", device_name.lower()))
    return next((card for card in DEVICES if words >= set(card.name.lower().split())), None)


def list_gpu_names() -> list[str]:
    """The names of this machine's NVIDIA GPUs, without a library or a process of theirs."""
    texts = [file.read_text(encoding="utf-8") for file in sorted(NVIDIA_GPUS_DIR.glob("*/information"))]
    return [found[1].strip() for text in texts if (found := re.search(r"^Model:(.*)", text, re.MULTILINE))]


def cpu_name() -> str:
    """The processor's own name, where Linux tells it."""
    try:
        found = re.search(r"^model name\s*: (.*)", CPUINFO_FILE.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


@functools.cache
def measure_cpu() -> Device:
    """This machine's CPU, its peaks measured with NumPy: a matrix product in float32, a copy, on all cores."""
    side, size = 1024, 2**24
    one, other = np.ones((2, side, side), np.float32)
    source, copied = np.ones((2, size), np.float32)
    tflops = 2 * side**3 / _min_seconds(lambda: one @ other) / 1e12
    gb_per_s = 2 * source.nbytes / _min_seconds(lambda: np.copyto(copied, source)) / 1e9
    bfloat16 = tflops * CPU_BFLOAT16_SPEEDUP if cpu_has_bfloat16() else None
    return Device(cpu_name(), bfloat16, tflops, gb_per_s, machine_memory()[1] / GIB, device="cpu")


def _min_seconds(function: Callable[[], Any]) -> float:
    """Seconds of the quickest of several runs."""
    function()
    best, end = float("inf"), time.perf_counter() + BENCHMARK_SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - started)
    return best


CGROUP_ROOT = Path("/sys/fs/cgroup")


def machine_memory() -> tuple[int, int]:
    """Bytes in use and in all, of the machine or of the container (control group) that this process is held in."""
    machine = psutil.virtual_memory()
    for folder, limit_file, use_file in _list_control_groups():
        try:
            limit = int((folder / limit_file).read_text())
            if limit < machine.total:
                return int((folder / use_file).read_text()) - _reclaimable_bytes(folder), limit
        except (OSError, ValueError):  # not there, or `max`
            continue
    return machine.total - machine.available, machine.total


def _list_control_groups() -> list[tuple[Path, str, str]]:
    """Folders of this process's control group, with the names of the files of its limit and use: version 2, then 1."""
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    v2 = [path for _, controllers, path in lines if not controllers]
    v1 = [path for _, controllers, path in lines if "memory" in controllers.split(",")]
    own = [(CGROUP_ROOT / path.lstrip("/"), "memory.max", "memory.current") for path in v2]
    own += [
        (CGROUP_ROOT / "memory" / path.lstrip("/"), "memory.limit_in_bytes", "memory.usage_in_bytes") for path in v1
    ]
    # within a container the path is often that of its host; its own group is the root then
    roots = [(CGROUP_ROOT, "memory.max", "memory.current")]
    return [*own, *roots, (CGROUP_ROOT / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")]


def _reclaimable_bytes(folder: Path) -> int:
    """Bytes of files that the kernel gives back when they are needed."""
    lines = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
    found = {name: int(value) for name, value in lines}
    return found.get("total_inactive_file", found.get("inactive_file", 0))
