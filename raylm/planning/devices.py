"""Devices that trials run on: peak rates of known GPUs and of this CPU, and this machine's memory."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raylm import numerics
from raylm.machine import APPLE_GPU, machine_memory
from raylm.numerics import CPUINFO_FILE, cpu_has_bfloat16
from raylm.units import GIB

BENCHMARK_SECONDS = 0.2
"""Time to measure each of the two peak rates of a CPU."""
CPU_BFLOAT16_SPEEDUP = 2.0
"""Rate of matrix products in bfloat16 over float32: an AVX512-BF16 instruction does two products per lane.

Measured on one core of an AMD EPYC that has it: 2.2 to 2.4 (torch 2.13). AMX does more: its estimates are too long.
"""
NVIDIA_GPUS_DIR = Path("/proc/driver/nvidia/gpus")
"""Folder in which NVIDIA's driver for Linux describes its GPUs."""
CPU_BUILD_SUFFIX = "+cpu"
"""End of the version of torch's build for CPUs, on Linux and Windows."""


@dataclass(frozen=True)
class Device:
    """A GPU, or this machine's CPU, with the rates that time and memory are estimated from."""

    name: str
    """Words that `torch.cuda.get_device_name` contains for this GPU; the name of a CPU."""
    bfloat16_tflops: float | None
    """Peak of dense matrix products in bfloat16 with float32 sums, in TFLOP/s; None if they would be emulated."""
    float32_tflops: float
    """Peak of matrix products in full float32, in TFLOP/s."""
    gb_per_s: float
    """Memory bandwidth, in GB/s."""
    memory_gib: float
    """Memory available to programs, in GiB."""
    type: str = "cuda"
    """`cuda` or `cpu`."""
    float16_tflops: float | None = None
    """The same in float16, of a GPU without bfloat16; the others have the same rate in both."""

    @property
    def half_precisions(self) -> tuple[str, ...]:
        """Those of `numerics.HALF_PRECISIONS` in which products are fast; on a CPU, float16 is not used."""
        if self.bfloat16_tflops is not None:
            return numerics.HALF_PRECISIONS if self.type == "cuda" else ("bfloat16",)
        return () if self.float16_tflops is None else ("float16",)

    @property
    def cli_name(self) -> str:
        """Name of the device on the command line."""
        return self.name.lower().replace(" ", "-")

    def peak_tflops(self, precision: str) -> float:
        """Return the peak rate of matrix products, in TFLOP/s."""
        if precision == "float32":
            return self.float32_tflops
        return self.bfloat16_tflops or self.float16_tflops or self.float32_tflops


DEVICES = (
    # NVIDIA's data sheets; memory as torch reports it
    Device("T4", None, 8.1, 320, 14.6, float16_tflops=65),
    # torch's wheels on PyPI have no kernels for V100 (sm_70); those of download.pytorch.org/whl/cu126 do
    Device("V100 32GB", None, 15.7, 900, 31.7, float16_tflops=125),
    Device("V100", None, 15.7, 900, 15.8, float16_tflops=125),
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
"""Known GPUs. The first whose name matches counts."""


def resolve_precision(requested: str, device: Device) -> str:
    """Return the precision that a trial trains in on a device.

    The same rule as `raylm.training.device.resolve_precision`, for a device that may not be in this machine.
    """
    return numerics.resolve_precision(requested, [device.half_precisions])


# ---- GPUs ---------------------------------------------------------------------------------------------------------


def find_device(device_name: str) -> Device | None:
    """Return the known GPU for a name from a driver or from torch, or None, as for a part of a GPU."""
    words = set(re.split(r"[^a-z0-9]+", device_name.lower()))
    known = next((device for device in DEVICES if words >= set(device.name.lower().split())), None)
    return None if is_mig(device_name) else known


def is_mig(device_name: str) -> bool:
    """Return whether a name by torch is that of an instance of a divided GPU (NVIDIA's MIG), such as `MIG 1g.10gb`."""
    return "MIG" in device_name.split()


def list_gpu_names() -> list[str]:
    """Return the names of the GPUs of this machine that trials can use.

    They are those of torch where it is loaded. Elsewhere they are that of a Mac with Apple silicon, for which torch has
    one build, or those that NVIDIA's driver describes in its files, read without a library or a process: none under
    WSL2, and none of AMD.
    """
    if torch := sys.modules.get("torch"):
        if torch.backends.mps.is_available():
            return [APPLE_GPU]
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return [torch.cuda.get_device_name(index) for index in range(number)]
    if sys.platform == "darwin":
        return [APPLE_GPU] if platform.machine() == "arm64" else []
    if _is_cpu_build_installed():
        return []
    texts = [file.read_text(encoding="utf-8") for file in sorted(NVIDIA_GPUS_DIR.glob("*/information"))]
    return [match[1].strip() for text in texts if (match := re.search(r"^Model:(.*)", text, re.MULTILINE))]


def _is_cpu_build_installed() -> bool:
    """Return whether the installed torch is a build for CPUs, by its version."""
    try:
        return importlib.metadata.version("torch").endswith(CPU_BUILD_SUFFIX)
    except importlib.metadata.PackageNotFoundError:
        return True


# ---- the CPU ------------------------------------------------------------------------------------------------------


def cpu_name() -> str:
    """Return the processor's name on Linux, and its architecture on other systems."""
    try:
        match = re.search(r"^model name\s*: (.*)", CPUINFO_FILE.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.machine()


@functools.cache
def measure_cpu() -> Device:
    """Return this machine's CPU with peak rates measured by NumPy on all cores: a float32 matrix product and a copy.

    NumPy has no bfloat16; its rate is `CPU_BFLOAT16_SPEEDUP` times that of float32.
    """
    side, size = 1024, 2**24
    left, right = np.ones((2, side, side), np.float32)
    source, target = np.ones((2, size), np.float32)
    tflops = 2 * side**3 / _min_seconds(lambda: left @ right) / 1e12
    gb_per_s = 2 * source.nbytes / _min_seconds(lambda: np.copyto(target, source)) / 1e9
    bfloat16_tflops = tflops * CPU_BFLOAT16_SPEEDUP if cpu_has_bfloat16() else None
    return Device(cpu_name(), bfloat16_tflops, tflops, gb_per_s, machine_memory()[1] / GIB, type="cpu")


def _min_seconds(function: Callable[[], Any]) -> float:
    """Return the shortest time of several calls, in seconds."""
    function()
    best, end = float("inf"), time.perf_counter() + BENCHMARK_SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - started)
    return best
