"""Compile the Triton kernels of a module for GPUs that are not there, and print the sizes of the binaries as JSON.

python tests/programs/compile_kernels.py loss|adafactor
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from raylm.data.corpus import IGNORE_INDEX
from raylm.training import loss_kernel
from raylm.training.loss import FLOAT16_GRADIENT_SCALE
from raylm.training.optim import adafactor_kernels, adafactor_launch

CAPABILITIES = (70, 75, 80, 90, 120)
"""GPUs from V100 and T4, which have no bfloat16, to Blackwell."""
NUM_WARPS = 8
TYPES = {
    "targets": "*i64",
    "table": "*i64",
    "addresses": ("i64",) * adafactor_launch.ADDRESSES_PER_LAUNCH,
    **dict.fromkeys(("length", "rows", "columns", "per_parameter"), "i32"),
    **dict.fromkeys(("logits_stride", "gradients_stride", "num_columns"), "i32"),
    "weight_decay": "fp32",
}
"""Types of arguments that are no pointers to float32."""
MULTIPLES = ("columns", "row_sums", "column_sums", "row_factors", "column_factors", "row_moments", "column_moments")
"""Arguments that are multiples of 16: sizes of GPT-2, and addresses by torch's allocator."""
CONSTANTS = {
    "HAS_GRADIENT": True,
    "IGNORE": IGNORE_INDEX,
    "BLOCK": loss_kernel.BLOCK_COLUMNS,
    "TILE_R": adafactor_launch.TILE_ROWS,
    "TILE_C": adafactor_launch.TILE_COLUMNS,
}


def compile_kernel(kernel: Any, capability: int, types: dict[str, Any], constants: dict[str, Any]) -> dict[str, int]:
    """Return the bytes of a kernel's binary for a compute capability, and its reads of 16 bytes by a thread."""
    constants = {name: value for name, value in {**CONSTANTS, **constants}.items() if name in kernel.arg_names}
    signature = {name: {**TYPES, **types}.get(name, "*fp32") for name in kernel.arg_names if name not in constants}
    signature |= dict.fromkeys(constants, "constexpr")
    numbers = [number for number, name in enumerate(kernel.arg_names) if name in MULTIPLES and name not in constants]
    attributes = {(number,): [["tt.divisibility", 16]] for number in numbers}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": NUM_WARPS}).asm
    return {"bytes": len(binary["cubin"]), "reads": binary["ptx"].count("ld.global.v4")}


def compile_loss(capability: int) -> dict[str, Any]:
    """Compile the kernel of the loss for each type of gradients."""
    scales = {"*fp16": FLOAT16_GRADIENT_SCALE} if capability < 80 else {"*bf16": 1.0}
    kernel, scales = loss_kernel._cross_entropy_kernel, {**scales, "*fp32": 1.0}
    return {
        kind: compile_kernel(kernel, capability, {"gradients": kind}, {"GRADIENT_SCALE": scale})
        for kind, scale in scales.items()
    }


def compile_adafactor(capability: int) -> dict[str, Any]:
    """Compile each kernel of Adafactor."""
    names = "sum_squares", "square_updates", "update_matrices", "sum_vector_squares", "update_vectors"
    options = {"ALIGNED": True, "SIZE": adafactor_launch.VECTOR_BLOCK}
    compiled = {name: compile_kernel(getattr(adafactor_kernels, name), capability, {}, options) for name in names}
    options = {"SIZE": adafactor_launch.MOMENT_BLOCK}
    compiled["update_moments"] = compile_kernel(adafactor_kernels.update_moments, capability, {}, options)
    compiled["write_addresses"] = compile_kernel(adafactor_kernels.write_addresses, capability, {}, {})
    return compiled


if __name__ == "__main__":
    compile_all = {"loss": compile_loss, "adafactor": compile_adafactor}[sys.argv[1]]
    print(json.dumps({f"sm_{capability}": compile_all(capability) for capability in CAPABILITIES}))
