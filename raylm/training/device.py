"""Device of a trial: GPUs that torch can use, bfloat16 support, shares of a GPU, and glibc's allocator on a CPU."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
import warnings
from dataclasses import dataclass

import torch

from raylm import numerics
from raylm.errors import UserError
from raylm.numerics import CPU_BFLOAT16_FLAGS, ONEDNN_ISA_VARIABLES

M_MMAP_THRESHOLD = -3
"""Parameter of `mallopt` for the size above which a block gets a mapping of its own (malloc.h)."""
MMAP_THRESHOLD_BYTES = 2**20
"""Value of that parameter if memory is short."""
ALLOCATOR_OPTIONS = "expandable_segments:True"
"""Options of torch's allocator of GPU memory: segments that grow. Others of gpt2-xl held up to 1.36 times what was in
use, by torch's allocator on a simulated GPU."""
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables with the user's own options, which torch reads when it is imported."""
OLD_GPU_WHEELS = "https://download.pytorch.org/whl/cu126"
"""Index of torch's build for GPUs before compute capability 7.5, such as V100 (7.0)."""


@dataclass(frozen=True)
class GpuReport:
    """GPUs that torch can use in one process, usually on another node."""

    names: tuple[str, ...]
    """Names by torch."""
    problem: str = ""
    """Reason for which torch can use none; empty if it can."""


def inspect_gpus() -> GpuReport:
    """Return the GPUs that torch can use in this process."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_available = torch.cuda.is_available()
    if not is_available:
        return GpuReport((), _explain_missing_gpu([str(warning.message) for warning in caught]))
    numbers = range(torch.cuda.device_count())
    names = tuple(torch.cuda.get_device_name(number) for number in numbers)
    unsupported = [number for number in numbers if not _has_kernels(torch.cuda.get_device_capability(number))]
    if not unsupported:
        return GpuReport(names)
    major, minor = torch.cuda.get_device_capability(unsupported[0])
    return GpuReport(
        (),
        f"torch {torch.__version__} has no kernels for {names[unsupported[0]]} (compute capability {major}.{minor}); "
        f"it has them for {', '.join(torch.cuda.get_arch_list())}: install a build with them, such as that of "
        f"{OLD_GPU_WHEELS}",
    )


def choose_device() -> str:
    """Return the device type of work outside of Ray: `cuda` if torch can use a GPU, else `cpu`."""
    return "cpu" if inspect_gpus().problem else "cuda"


def _explain_missing_gpu(torch_warnings: list[str]) -> str:
    """Return why `torch.cuda.is_available()` is false."""
    version = f"torch {torch.__version__}"
    if sys.platform == "darwin":
        return f"{version} has CUDA on no Mac, and raylm does not train on Apple's GPUs"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"{version} is a build for CPUs; install one for CUDA"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    cause = torch_warnings[0].split(" (Triggered")[0] if torch_warnings else "the driver is missing or too old for it"
    return f"{version} for {build} finds no GPU: {cause}"


def _has_kernels(capability: tuple[int, int]) -> bool:
    """Return whether this build of torch has kernels for a compute capability: for its major version, or as PTX."""
    if torch.version.hip:
        return True
    major, minor = capability
    for name in torch.cuda.get_arch_list():
        kind, number = re.sub(r"[a-z]+$", "", name).split("_")
        supported = divmod(int(number), 10)
        if kind == "compute" and supported <= (major, minor):
            return True
        if kind == "sm" and supported[0] == major and supported[1] <= minor:
            return True
    return False


def set_allocator_options() -> None:
    """Set `ALLOCATOR_OPTIONS` in this process, unless the user has set options in the environment."""
    if not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        torch._C._accelerator_setAllocatorSettings(ALLOCATOR_OPTIONS)


def limit_gpu_memory(share: float, context_bytes: int) -> None:
    """Limit this process to a share of its GPU's memory, so that it runs out of memory itself and not its neighbours.

    Args:
        share: fraction of the memory, 0 to 1; 1 removes the limit of an earlier trial.
        context_bytes: part of the share that torch's allocator does not manage, such as the CUDA context.
    """
    unmanaged = context_bytes / torch.cuda.mem_get_info()[1] if share < 1 else 0.0
    torch.cuda.set_per_process_memory_fraction(max(0.0, share - unmanaged))


def resolve_precision(requested: str, device: str) -> str:
    """Return the precision of training on a device: `auto` is bfloat16 on a device that has it, else float32.

    Raises:
        UserError: if bfloat16 is requested on a device without it: its products would take up to hundreds of times
            longer.
    """
    supported = has_bfloat16(device)
    if requested == "bfloat16" and not supported:
        subject = f"{torch.cuda.get_device_name()} of {platform.node()}" if device == "cuda" else _describe_cpu()
        raise UserError(
            f"precision: bfloat16 would be emulated on {subject}; expected float32, or auto, which is float32 there"
        )
    return numerics.resolve_precision(requested, supported)


def _describe_cpu() -> str:
    if sys.platform == "darwin":
        return "this Mac, where torch has no fast products in it"
    return f"this processor, which has none of {', '.join(CPU_BFLOAT16_FLAGS)}, or under this {ONEDNN_ISA_VARIABLES[0]}"


def has_bfloat16(device: str) -> bool:
    """Return whether a device (`cpu` or `cuda`) multiplies matrices in bfloat16 without emulation, as torch sees it.

    For a CPU, `numerics.cpu_has_bfloat16` gives the same answer without torch.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if sys.platform == "darwin":  # M2 and later report it, but torch's products in it are slower than in float32
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in CPU_BFLOAT16_FLAGS) and not numerics.onednn_emulates_bfloat16()


def lower_mmap_threshold() -> None:
    """Make glibc return each large block to the system when it is freed; no-op with another C library.

    glibc keeps freed blocks of up to 32 MiB for reuse, in pieces that the next tensor may not fit into: gpt2-xl at
    micro-batch 2 then takes more than 24 GB on a CPU, of which 18 are in use. Mapping costs time, so this is for trials
    that are short of memory.
    """
    _call_glibc("mallopt", M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def trim_heap() -> None:
    """Return the freed blocks that glibc keeps to the system now; no-op with another C library."""
    _call_glibc("malloc_trim", 0)


def _call_glibc(function: str, *arguments: int) -> None:
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), function):
        getattr(library, function)(*arguments)
