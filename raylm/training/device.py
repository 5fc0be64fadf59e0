"""Device of a trial: the accelerator that torch can use, its abilities and memory, and glibc's allocator on a CPU."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from raylm import numerics
from raylm.errors import UserError
from raylm.machine import APPLE_GPU
from raylm.numerics import CPU_BFLOAT16_FLAGS, ONEDNN_ISA_VARIABLES

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of `mallopt` (malloc.h): the size of the heap's free end above which it is returned to the system, and
that of a block above which it gets a mapping of its own."""
KEEP_THRESHOLDS = (2**30, 2**25)
"""Values of those parameters: of the second the largest that glibc, which adapts both to the sizes of freed blocks,
chooses by itself."""
RETURN_THRESHOLDS = (2**21, 2**20)
"""Their values if memory is short."""
ALLOCATOR_OPTIONS = "expandable_segments:True"
"""Options of torch's allocator of GPU memory: segments that grow. Others of gpt2-xl held up to 1.36 times what was in
use, by torch's allocator on a simulated GPU."""
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables with the user's own options, which torch reads when it is imported."""
OLD_GPU_WHEELS = "https://download.pytorch.org/whl/cu126"
"""Index of torch's build for GPUs before compute capability 7.5, such as V100 (7.0), and for older drivers."""
INSTALL_PAGE = "https://pytorch.org/get-started/locally"
"""Page with the indexes of torch's other builds."""
AMD_DRIVER_FILE = Path("/dev/kfd")
"""Device file of AMD's driver for computations."""


@dataclass(frozen=True)
class Abilities:
    """Abilities of a type of device. Code that depends on the device asks for them, not for the device's name."""

    process_group: str
    """Backend of `torch.distributed`; empty: a trial has one rank."""
    loss_check_steps: int
    """Steps between two reads of the loss, which wait for a GPU; a diverged trial is noticed at the next one."""
    has_cuda: bool = False
    """True if there are CUDA graphs, kernels compiled by Triton, and pinned memory for copies that run beside work."""
    has_own_memory: bool = False
    """True if the device has memory of its own; others use the machine's."""
    has_float64: bool = True
    has_padded_outputs: bool = True
    """True if matrix products into rows with padding between them are known to be correct."""


ABILITIES = {
    "cpu": Abilities("gloo", loss_check_steps=1),
    "cuda": Abilities("nccl", loss_check_steps=10, has_cuda=True, has_own_memory=True),  # NVIDIA, and AMD under ROCm
    "mps": Abilities("", loss_check_steps=10, has_float64=False, has_padded_outputs=False),  # Apple
}
"""Abilities by the type of device as torch names it. raylm trains on these types only."""


def to_float64(tensor: Tensor) -> Tensor:
    """Return a tensor in float64 on its device, or on the CPU if its device has no float64."""
    return (tensor if ABILITIES[tensor.device.type].has_float64 else tensor.cpu()).double()


# ---- the accelerator ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GpuReport:
    """GPUs that torch can use in one process, usually on another node."""

    names: tuple[str, ...]
    """Names by torch."""
    problem: str = ""
    """Reason for which torch can use none; empty if it can."""
    device: str = "cuda"
    """Type of these GPUs: `cuda` or `mps`."""
    memory_bytes: tuple[int, ...] = ()
    """Memory of each that trials may use."""


def inspect_gpus() -> GpuReport:
    """Return the GPUs that torch can use in this process, by `torch.accelerator`."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accelerator = torch.accelerator.current_accelerator()
        is_available = torch.accelerator.is_available()
    if accelerator is None or not is_available:
        return GpuReport((), _explain_missing_gpu([str(warning.message) for warning in caught]))
    if accelerator.type == "mps":
        return GpuReport((name_device(accelerator.type),), "", "mps", (torch.mps.recommended_max_memory(),))
    if accelerator.type != "cuda":
        return GpuReport((), f"raylm trains on no accelerator that torch {torch.__version__} calls {accelerator.type}")
    numbers = range(torch.cuda.device_count())
    names = tuple(torch.cuda.get_device_name(number) for number in numbers)
    unsupported = [number for number in numbers if not _has_kernels(torch.cuda.get_device_capability(number))]
    if not unsupported:
        memory = tuple(torch.cuda.get_device_properties(number).total_memory for number in numbers)
        return GpuReport(names, memory_bytes=memory)
    major, minor = torch.cuda.get_device_capability(unsupported[0])
    return GpuReport(
        (),
        f"torch {torch.__version__} has no kernels for {names[unsupported[0]]} (compute capability {major}.{minor}); "
        f"it has them for {', '.join(torch.cuda.get_arch_list())}: install a build with them, such as by "
        f"`{_install_command(OLD_GPU_WHEELS)}`",
    )


def choose_device() -> str:
    """Return the device type of work in this process: `cuda` or `mps` if torch can use such a GPU, else `cpu`."""
    report = inspect_gpus()
    return "cpu" if report.problem else report.device


def name_device(device: str) -> str:
    """Return the name of this process's GPU of a type, `cuda` or `mps`."""
    if device == "mps":  # torch before 2.9 does not tell it
        return torch.backends.mps.get_name() if hasattr(torch.backends.mps, "get_name") else APPLE_GPU
    return torch.cuda.get_device_name()


def _explain_missing_gpu(torch_warnings: list[str]) -> str:
    """Return why torch can use no accelerator, with the command that mends it."""
    version = f"torch {torch.__version__}"
    if sys.platform == "darwin":
        needs = "macOS 14 or later on Apple silicon, and a Python for arm64"
        return f"{version} cannot use the GPU of this Mac, for which it needs {needs} ({platform.machine()} here)"
    if torch.version.cuda is None and torch.version.hip is None:
        if AMD_DRIVER_FILE.exists():
            command = f"`{_install_command('URL')}` with the index of ROCm at {INSTALL_PAGE}"
            return f"{version} is a build for CPUs; install one for AMD's GPUs: {command}"
        return f"{version} is a build for CPUs; install one for NVIDIA's GPUs: `{_install_command()}`"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    cause = torch_warnings[0].split(" (Triggered")[0] if torch_warnings else "the driver is missing or too old for it"
    older = f"; a build for older drivers: `{_install_command(OLD_GPU_WHEELS)}`" if torch.version.cuda else ""
    return f"{version} for {build} finds no GPU: {cause}{older}"


def _install_command(index: str = "") -> str:
    """Return the command that replaces this build of torch by that of an index; by default, of PyPI."""
    version = torch.__version__.split("+")[0]
    return f"pip install --force-reinstall torch=={version}" + (f" --index-url {index}" if index else "")


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


# ---- memory -------------------------------------------------------------------------------------------------------


def set_allocator_options() -> None:
    """Set `ALLOCATOR_OPTIONS` in this process, unless the user has set options in the environment."""
    if not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        set_options = getattr(torch._C, "_accelerator_setAllocatorSettings", None)  # not in torch 2.8
        (set_options or torch.cuda.memory._set_allocator_settings)(ALLOCATOR_OPTIONS)


def empty_host_cache() -> None:
    """Free the pinned memory that torch keeps for copies from the GPU."""
    empty = getattr(torch.accelerator, "empty_host_cache", None)  # not in torch 2.8
    (empty or torch._C._host_emptyCache)()


def limit_gpu_memory(share: float, context_bytes: int, device: str = "cuda") -> None:
    """Limit this process to a share of its GPU's memory, so that it runs out of memory itself and not its neighbours.

    Args:
        share: fraction of the memory, 0 to 1; 1 removes the limit of an earlier trial.
        context_bytes: part of the share that torch's allocator does not manage, such as the CUDA context.
        device: `cuda` or `mps`.
    """
    if device == "mps":  # by default, torch would use 1.7 times the memory that Metal recommends
        torch.mps.set_per_process_memory_fraction(share)
        return
    unmanaged = context_bytes / torch.cuda.mem_get_info()[1] if share < 1 else 0.0
    torch.cuda.set_per_process_memory_fraction(max(0.0, share - unmanaged))


def gpu_memory_bytes(device: str) -> int:
    """Return the memory of this process's GPU that trials may use: on a Mac, what Metal recommends of the machine's."""
    return int(torch.mps.recommended_max_memory() if device == "mps" else torch.cuda.mem_get_info()[1])


def gpu_bytes_in_use(device: str) -> int:
    """Return the bytes of this process's tensors on a GPU; 0 on a CPU."""
    if device == "mps":
        return int(torch.mps.current_allocated_memory())
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def machine_bytes_in_use(device: str) -> int:
    """Return the bytes of the machine's memory that this process holds, those of a GPU without its own included."""
    own = int(psutil.Process().memory_info().rss)  # without what Metal allocates
    return own + int(torch.mps.driver_allocated_memory()) if device == "mps" else own


def free_gpu_memory(device: str) -> None:
    """Return the freed blocks that torch's allocator keeps to the GPU; no-op on a CPU."""
    if device == "cuda":
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


# ---- precision ----------------------------------------------------------------------------------------------------


def resolve_precision(requested: str, device: str) -> str:
    """Return the precision of training on a device: `auto` is bfloat16 or float16 if the device has it, else float32.

    Raises:
        UserError: if bfloat16 or float16 is requested on a device without it: its products would take up to hundreds of
            times longer.
    """
    supported = half_precisions(device)
    if requested in numerics.HALF_PRECISIONS and requested not in supported:
        subject = _describe_cpu(requested) if device == "cpu" else f"{name_device(device)} of {platform.node()}"
        expected = f"float32, or auto, which is {numerics.resolve_precision('auto', [supported])} there"
        raise UserError(f"precision: {requested} would be emulated on {subject}; expected {expected}")
    return numerics.resolve_precision(requested, [supported])


def _describe_cpu(precision: str) -> str:
    if precision == "float16":
        return "a processor; it is for GPUs"
    if sys.platform == "darwin":
        return "this Mac, where torch has no fast products in it"
    return f"this processor, which has none of {', '.join(CPU_BFLOAT16_FLAGS)}, or under this {ONEDNN_ISA_VARIABLES[0]}"


def half_precisions(device: str) -> tuple[str, ...]:
    """Return those of `numerics.HALF_PRECISIONS` in which a device multiplies matrices fast."""
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return numerics.HALF_PRECISIONS
        is_fast = torch.cuda.get_device_capability() >= numerics.FLOAT16_CAPABILITY
        return ("float16",) if is_fast else ()
    if device == "mps":  # M1 has no bfloat16, and neither has been tried
        return ()
    if sys.platform == "darwin":  # M2 and later report it, but torch's products in it are slower than in float32
        return ()
    return ("bfloat16",) if numerics.cpu_has_bfloat16() else ()


# ---- glibc --------------------------------------------------------------------------------------------------------


def keep_freed_blocks() -> None:
    """Make glibc keep freed memory of a step for the next one; no-op with another C library.

    Otherwise much of it is returned to the system at each step, and mapped and zeroed again.
    """
    _set_thresholds(*KEEP_THRESHOLDS)


def return_freed_blocks() -> None:
    """Make glibc return each large block to the system when it is freed; no-op with another C library.

    glibc keeps freed blocks of up to 32 MiB for reuse, in pieces that the next tensor may not fit into: gpt2-xl at
    micro-batch 2 then takes more than 24 GB on a CPU, of which 18 are in use. Mapping costs time, so this is for trials
    that are short of memory.
    """
    _set_thresholds(*RETURN_THRESHOLDS)


def _set_thresholds(trim_bytes: int, mmap_bytes: int) -> None:
    _call_glibc("mallopt", M_TRIM_THRESHOLD, trim_bytes)
    _call_glibc("mallopt", M_MMAP_THRESHOLD, mmap_bytes)


def trim_heap() -> None:
    """Return the freed blocks that glibc keeps to the system now; no-op with another C library."""
    _call_glibc("malloc_trim", 0)


def _call_glibc(function: str, *arguments: int) -> None:
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), function):
        getattr(library, function)(*arguments)
