"""Training steps of raylm and of transformers, from the same building blocks as the training loop.

B is the batch, T the context length.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from first_hour_parts.setup import Cell, NotMeasuredError, Setup, build_batches, build_model
from raylm.config.trial import TrialConfig
from raylm.training import layers
from raylm.training.loss import summed_loss
from raylm.training.optim.optimizer import build_optimizer
from raylm.training.validation import autocast_loss

Step = Callable[[], Tensor]
"""Function that trains on the next batch and returns its loss per token, on the device."""
LEARNING_RATE, MAX_GRAD_NORM = 5e-5, 1.0
PROFILED_KERNELS = 15
"""Kernels of a profile that are reported."""
KERNEL_NAME_LENGTH = 90
ABSOLUTE_STEP = {"scale_parameter": False, "relative_step": False, "warmup_init": False}


def build_step(
    cell: Cell, model: Any, device: str, *, tool: str, precision: str, num_batches: int = 4, attention: str = "sdpa"
) -> Step:
    """Return a step of a model that is on the device.

    Args:
        tool: `raylm`, `compiled` (raylm with blocks compiled) or `transformers` (as its run_clm trains).
        num_batches: number of different batches, used in turns.
        attention: transformers' implementation.
    """
    optimizer: torch.optim.Optimizer
    if tool == "transformers":
        from transformers.optimization import Adafactor as TransformersAdafactor

        model.set_attn_implementation(attention)
        optimizer = TransformersAdafactor(model.parameters(), lr=LEARNING_RATE, **ABSOLUTE_STEP)
    else:
        layers.patch_layers(model)
        if tool == "compiled":
            layers.compile_blocks(model)
        optimizer = build_optimizer(TrialConfig(learning_rate=LEARNING_RATE, max_grad_norm=MAX_GRAD_NORM), model)
    following = itertools.cycle(build_batches(cell, num_batches, device))
    loss_fn = functools.partial(summed_loss, model)

    def step() -> Tensor:
        inputs_BT, targets_BT = next(following)
        if tool == "transformers":
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
                loss: Tensor = model(input_ids=inputs_BT, labels=inputs_BT, use_cache=False).loss
        else:
            loss = autocast_loss(loss_fn, inputs_BT, targets_BT, precision) / cell.num_tokens
        loss.backward()
        if tool == "transformers":  # raylm's optimizer clips
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def measure(setup: Setup, *, cell: str, tool: str, dropout: float = 0.0) -> dict[str, Any]:
    """Return tokens per second, times, first loss and peak memory of a step."""
    if tool == "compiled" and (setup.device == "cpu" or not layers.has_triton()):
        raise NotMeasuredError("needs a GPU, Triton and a C compiler")
    sizes = setup.cell(cell)
    model = build_model(sizes, dropout, setup.device)
    step = build_step(sizes, model, setup.device, tool=tool, precision=setup.precision)
    started = time.perf_counter()
    first_loss = step().item()
    first_seconds = time.perf_counter() - started
    setup.clear()  # the first step has made the optimizer's state
    timing = setup.time(step)
    return {
        "tokens/s": sizes.batch_size * sizes.context_length / timing.wall,
        "ms": timing.wall * 1e3,
        "host ms": timing.host * 1e3,
        **setup.peak_gib(),
        "s of the first step": first_seconds,
        "loss of the first step": first_loss,
    }


def profile(setup: Setup, *, cell: str) -> dict[str, Any]:
    """Return the time of a step of raylm in ms by kernel (on a CPU: by operator), the longest first."""
    from torch.profiler import ProfilerActivity

    if setup.is_simulated:
        raise NotMeasuredError("needs a GPU that computes")
    sizes = setup.cell(cell)
    model = build_model(sizes, 0.0, setup.device)
    step = build_step(sizes, model, setup.device, tool="raylm", precision=setup.precision)
    steps, on_gpu = setup.pick(3, 1), setup.device == "cuda"
    for _ in range(setup.pick(5, 1)):
        step()
    setup.synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        setup.synchronize()
    kernels: dict[str, dict[str, float]] = {}
    for event in profiler.key_averages():
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA
        if is_kernel or not on_gpu:
            microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            kernels[event.key[:KERNEL_NAME_LENGTH]] = {"ms": microseconds / steps / 1e3, "calls": event.count / steps}
    if on_gpu and not kernels:
        raise NotMeasuredError("torch's profiler has recorded no kernel: it needs CUPTI")
    largest = sorted(kernels.items(), key=lambda item: -item[1]["ms"])[:PROFILED_KERNELS]
    total = {key: sum(kernel[key] for kernel in kernels.values()) for key in ("ms", "calls")}
    return {**total, **dict(largest)}
