"""Numerical choices of training that its cost depends on: block sizes, precision, windows per rank. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

LOGITS_BLOCK_ROWS = {"cpu": 512, "cuda": 2048, "mps": 1024}
"""Positions whose logits exist at a time, by device (`logits_block_rows`).

That of `mps` is a guess: fewer save memory, which it shares with the machine."""
QUERY_BLOCK_ROWS = 128
"""Query positions of attention computed at a time, each block against all positions up to its last."""

HALF_PRECISIONS = ("bfloat16", "float16")
"""Precisions of 16 bits, the preferred one first: float16 overflows above 65,504, and needs a scale of the loss."""
FLOAT16_CAPABILITY = 7, 0
"""Compute capability of NVIDIA's GPUs from which products in float16 are faster than in float32."""
CPU_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""Instructions for products in bfloat16 on x86 and ARM, as /proc/cpuinfo and `torch.cpu.get_capabilities` name them."""
CPUINFO_FILE = Path("/proc/cpuinfo")
ONEDNN_ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables that limit the instructions of oneDNN, which computes torch's products; the first set counts.

`ATEN_CPU_CAPABILITY` does not limit them: products in bfloat16 are as fast under `avx2` and `default`."""
ONEDNN_ISA_WITHOUT_BFLOAT16 = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
)
"""Limits under which oneDNN emulates bfloat16, several to a hundred times slower (measured with torch 2.13)."""


def logits_block_rows(device_type: str, precision: str) -> int:
    """Return the number of positions whose logits exist at a time: enough to be worth one addition to a gradient.

    On a CPU, twice as many logits in bfloat16 take the same memory.
    """
    is_short = device_type == "cpu" and precision == "bfloat16"
    return LOGITS_BLOCK_ROWS[device_type] * (2 if is_short else 1)


def windows_per_rank(batch_size: int, world_size: int) -> int:
    """Return the number of windows of a batch that a rank gets, at most."""
    return -(-batch_size // world_size)


def resolve_precision(requested: str, devices: Sequence[Collection[str]]) -> str:
    """Return the precision of training: `auto` is the first of `HALF_PRECISIONS` that all devices have, else float32.

    Args:
        requested: `auto`, or the precision.
        devices: fast precisions of 16 bits of each device.
    """
    if requested != "auto":
        return requested
    return next((name for name in HALF_PRECISIONS if all(name in names for names in devices)), "float32")


def cpu_has_bfloat16() -> bool:
    """Return whether this processor multiplies in bfloat16 without emulation, by /proc/cpuinfo; False without it."""
    try:
        text = CPUINFO_FILE.read_text(encoding="utf-8")
    except OSError:
        return False
    match = re.search(r"^(?:flags|Features)\s*:(.*)", text, re.MULTILINE)  # x86, ARM
    flags = match[1].split() if match else []
    return any(name in flags for name in CPU_BFLOAT16_FLAGS) and not onednn_emulates_bfloat16()


def onednn_emulates_bfloat16() -> bool:
    """Return whether the environment forbids oneDNN the bfloat16 instructions that a processor may have."""
    limit = next((os.environ[name] for name in ONEDNN_ISA_VARIABLES if name in os.environ), "")
    return limit.upper() in ONEDNN_ISA_WITHOUT_BFLOAT16
