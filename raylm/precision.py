"""What a trial computes in: float32, or bfloat16 where the device has it."""

from __future__ import annotations

import torch

from raylm.errors import UserError

CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""What `torch.cpu.get_capabilities` calls products in bfloat16, on x86 and on ARM."""


def resolved(asked: str, device: str) -> str:
    """The precision that `auto` means on a device: bfloat16 where it has it, else float32.

    Raises:
        UserError: if bfloat16 is asked for on a processor without it, where its products take hundreds of times longer.
    """
    if device == "cuda":
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_it = any(torch.cpu.get_capabilities().get(name) for name in CPU_BFLOAT16)
        if asked == "bfloat16" and not has_it:
            raise UserError(
                "precision: bfloat16 would be emulated on this processor, which has none of "
                f"{', '.join(CPU_BFLOAT16)}; expected float32, or auto, which is float32 here"
            )
    if asked != "auto":
        return asked
    return "bfloat16" if has_it else "float32"
