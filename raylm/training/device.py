"""What a trial computes in: float32, or bfloat16 where the device has it."""

from __future__ import annotations

import ctypes
import sys

import torch

from raylm.errors import UserError
from raylm.numerics import CPU_BFLOAT16_FLAGS, ONEDNN_ISA_VARIABLES, onednn_emulates_bfloat16


def resolve_precision(requested: str, device: str) -> str:
    """The precision that `auto` means on a device: bfloat16 where it has it, else float32.

    Raises:
        UserError: if bfloat16 is asked for on a processor without it, where its products take hundreds of times longer.
    """
    if device == "cuda":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        has_it = any(capabilities.get(name) for name in CPU_BFLOAT16_FLAGS) and not onednn_emulates_bfloat16()
        if requested == "bfloat16" and not has_it:
            raise UserError(
                "precision: bfloat16 would be emulated on this processor, which has none of "
                f"{', '.join(CPU_BFLOAT16_FLAGS)}, or under this {ONEDNN_ISA_VARIABLES[0]}; "
                "expected float32, or auto, which is float32 here"
            )
    if requested != "auto":
        return requested
    return "bfloat16" if has_it else "float32"


M_MMAP_THRESHOLD = -3
"""glibc's name for the size from which on a block is mapped by itself (malloc.h)."""
MMAP_THRESHOLD_BYTES = 2**20
"""That size where memory is short."""


def lower_mmap_threshold() -> None:
    """Makes the C library give each large block back to the system when it is freed.

    glibc keeps blocks of up to 32 MiB for itself once it has seen them freed, in pieces that the next tensor may not
    fit into: gpt2-xl at micro-batch 2 then takes more than 24 GB on a CPU, where 18 are in use. Mapping costs time, so
    this is for trials whose memory is short. Nothing happens where the library is another one.
    """
    _call_glibc("mallopt", M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def trim_heap() -> None:
    """Gives freed blocks that glibc keeps for itself back to the system, now."""
    _call_glibc("malloc_trim", 0)


def _call_glibc(function: str, *arguments: int) -> None:
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), function):
        getattr(library, function)(*arguments)
