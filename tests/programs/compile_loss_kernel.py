"""Compile the Triton kernel of the loss for GPUs that are not there, and print the sizes of the binaries as JSON."""

from __future__ import annotations

import itertools
import json

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from raylm.data.corpus import IGNORE_INDEX
from raylm.training import loss_kernel
from raylm.training.loss import FLOAT16_GRADIENT_SCALE

CAPABILITIES = (80, 90, 120)
FLOAT16_CAPABILITIES = (70, 75)
"""V100 and T4, which have no bfloat16."""


def compile_kernel(capability: int, gradient_type: str) -> int:
    """Return the bytes of the kernel's binary for a compute capability."""
    constants: dict[str, float] = {"HAS_GRADIENT": True, "IGNORE": IGNORE_INDEX, "BLOCK": loss_kernel.BLOCK_COLUMNS}
    constants["GRADIENT_SCALE"] = FLOAT16_GRADIENT_SCALE if gradient_type == "*fp16" else 1.0
    signature = {"logits": "*fp32", "targets": "*i64", "losses": "*fp32", "gradients": gradient_type}
    signature |= dict.fromkeys(("logits_stride", "gradients_stride", "num_columns"), "i32")
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(loss_kernel._cross_entropy_kernel, signature=signature, constexprs=constants)
    options = {"num_warps": loss_kernel.NUM_WARPS}
    return len(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"])


if __name__ == "__main__":
    targets = [
        *itertools.product(CAPABILITIES, ("*bf16", "*fp32")),
        *itertools.product(FLOAT16_CAPABILITIES, ("*fp16", "*fp32")),
    ]
    print(json.dumps({f"sm_{number} {kind}": compile_kernel(number, kind) for number, kind in targets}))
