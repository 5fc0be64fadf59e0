"""Precision and memory of a trial's device: bfloat16 support, and glibc's allocator on a CPU."""

from __future__ import annotations

import ctypes
import sys

import torch

from raylm import numerics
from raylm.errors import UserError
from raylm.numerics import CPU_BFLOAT16_FLAGS, ONEDNN_ISA_VARIABLES

M_MMAP_THRESHOLD = -3
"""Parameter of `mallopt` for the size above which a block gets a mapping of its own (malloc.h)."""
MMAP_THRESHOLD_BYTES = 2**20
"""Value of that parameter if memory is short."""


def resolve_precision(requested: str, device: str) -> str:
    """Return the precision of training on a device: `auto` is bfloat16 on a device that has it, else float32.

    Raises:
        UserError: if bfloat16 is requested on a processor without it: its products would take up to hundreds of times
            longer.
    """
    supported = has_bfloat16(device)
    if requested == "bfloat16" and device == "cpu" and not supported:
        raise UserError(
            "precision: bfloat16 would be emulated on this processor, which has none of "
            f"{', '.join(CPU_BFLOAT16_FLAGS)}, or under this {ONEDNN_ISA_VARIABLES[0]}; "
            "expected float32, or auto, which is float32 here"
        )
    return numerics.resolve_precision(requested, supported)


def has_bfloat16(device: str) -> bool:
    """Return whether a device (`cpu` or `cuda`) multiplies matrices in bfloat16 without emulation, as torch sees it.

    For a CPU, `numerics.cpu_has_bfloat16` gives the same answer without torch.
    """
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
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
