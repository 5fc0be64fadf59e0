"""The card itself: memory of a context, bandwidth, matrix products, launches, attention."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from first_hour_parts.setup import NotMeasuredError, Setup
from raylm.planning.memory import RUNTIME_BASELINE_BYTES

HEADS, HEAD_WIDTH = 12, 64
BACKENDS = (
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def context_memory(setup: Setup) -> dict[str, Any]:
    """Return the memory that this process takes beside its tensors: the context, and the libraries' workspaces."""
    if setup.device != "cuda":
        raise NotMeasuredError("needs a GPU")
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    left = torch.ones(512, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    (left @ left).sum().backward()
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    return {
        "MiB at the start": context / 2**20,
        "MiB after a product": (total - free - torch.cuda.memory_reserved()) / 2**20,
        "MiB of workspaces held by torch": torch.cuda.memory_reserved() / 2**20,
        "MiB planned": RUNTIME_BASELINE_BYTES["cuda"] / 2**20,
        "note": "other processes on the card count too",
    }


def copy_bandwidth(setup: Setup) -> dict[str, Any]:
    """Return the bytes read and written per second by a copy."""
    source = torch.zeros(setup.pick(2**28, 2**20), device=setup.device)
    target = torch.empty_like(source)
    timing = setup.time(lambda: target.copy_(source))
    return {"GB/s": 2 * 4 * source.numel() / timing.wall / 1e9}


def product_rate(setup: Setup, *, dtype: str) -> dict[str, Any]:
    """Return the rate of a large product, and of those of GPT-2's head and of its layers."""
    positions, side = setup.pick((16384, 8192), (64, 64))
    shapes = {
        "8192 x 8192 x 8192": (side, side, side),
        "head, 16384 x 768 x 50304": (positions, 768, setup.pick(50304, 512)),
        "layer, 16384 x 768 x 3072": (positions, 768, setup.pick(3072, 256)),
    }
    values: dict[str, Any] = {}
    for name, (rows, inner, columns) in shapes.items():
        left = torch.zeros(rows, inner, device=setup.device, dtype=getattr(torch, dtype)).normal_()
        right = torch.zeros(inner, columns, device=setup.device, dtype=getattr(torch, dtype)).normal_()
        timing = setup.time(lambda left=left, right=right: left @ right, seconds=1.0)
        values[name] = {"TFLOP/s": 2 * rows * inner * columns / timing.wall / 1e12}
    return values


def launch_times(setup: Setup) -> dict[str, Any]:
    """Return the time of the host to launch a small kernel, and of the GPU from one to the next."""
    value = torch.zeros(16, device=setup.device)

    def launch() -> None:
        for _ in range(500):  # fewer than the queue of a stream holds
            value.add_(1.0)

    timing = setup.time(launch, seconds=1.0, least=1)
    return {"us of the host": timing.host / 500 * 1e6, "us in all": timing.wall / 500 * 1e6}


def attention(setup: Setup, *, dtype: str, dropout: float) -> dict[str, Any]:
    """Return the implementation that torch chooses, and the times of all in ms, forward and backward."""
    batch, context = setup.pick((16, 1024), (2, 32))
    hidden = torch.zeros(batch, context, 3 * HEADS * HEAD_WIDTH, device=setup.device, dtype=getattr(torch, dtype))
    hidden.normal_().requires_grad_()
    heads = [part.view(batch, context, HEADS, HEAD_WIDTH).transpose(1, 2) for part in hidden.chunk(3, dim=-1)]

    def run() -> None:
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads, dropout_p=dropout, is_causal=True)
        mixed.backward(mixed.detach(), retain_graph=True)
        hidden.grad = None

    chosen = torch._fused_sdp_choice(*heads, dropout_p=dropout, is_causal=True)
    values: dict[str, Any] = {"chosen": _name(SDPBackend(chosen))}
    for backend in BACKENDS:
        if backend == SDPBackend.CUDNN_ATTENTION and not torch.backends.cuda.cudnn_sdp_enabled():
            continue
        try:
            with sdpa_kernel(backend):
                values[_name(backend)] = {"ms": setup.time(run, seconds=1.0).wall * 1e3}
        except RuntimeError as error:
            values[_name(backend)] = {"failed": str(error)}
    return values


def _name(backend: SDPBackend) -> str:
    return str(backend.name).removesuffix("_ATTENTION").lower()
