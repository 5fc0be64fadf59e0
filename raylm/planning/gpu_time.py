"""Time of an optimizer step on a GPU by its parts, and whether compiling a trial saves time. No torch.

A model, not a measurement. Bytes and kernels were counted on fake CUDA tensors with torch 2.13, and tests count them
again; the rates are those that good kernels reach.
"""

from __future__ import annotations

from dataclasses import dataclass

from raylm.numerics import HALF_PRECISIONS, LOGITS_BLOCK_ROWS
from raylm.planning.devices import Device, find_device
from raylm.planning.memory import MemoryModel
from raylm.results.progress import MicroBatching

GEMM_EFFICIENCY = 0.7
"""Fraction of the peak rate that matrix products reach: on an H100 the best public kernel for a head and its loss, 698
TFLOP/s (README of linkedin/Liger-Kernel)."""
ATTENTION_EFFICIENCY = 0.33, 0.29
"""Fractions of the peak rate that FlashAttention-2 reaches forward and backward on an H100: 330 and 290 TFLOP/s."""
CUDNN_GPUS = ("H100", "H100 PCIe", "H200")
"""GPUs (compute capability 9.0) on which torch takes cuDNN's attention in 16 bits without dropout."""
CUDNN_SPEEDUP = 2.0
"""Rate of cuDNN's attention over FlashAttention-2 there: 1.7 to 2.3 by transformers' pull request 48163."""
BANDWIDTH_EFFICIENCY = 0.9
"""Fraction of the memory bandwidth that elementwise kernels reach."""
KERNEL_SECONDS = 1.5e-6
"""Time of a kernel besides its traffic or arithmetic: its start, and the wait for the one before."""
LAYER_TRAFFIC_BYTES = {"float32": 245, **dict.fromkeys(HALF_PRECISIONS, 197)}
"""Memory traffic of a layer besides matrix products and attention: bytes per token and unit of width."""
COMPILED_LAYER_TRAFFIC_BYTES = {"float32": 175, **dict.fromkeys(HALF_PRECISIONS, 140)}
"""The same of a compiled layer: inductor counts 148 in bfloat16 on a CPU; on a GPU it fuses 8 more, of the norms."""
DROPOUT_TRAFFIC_BYTES = 21
"""Additional traffic with dropout, per token, layer and unit of width; compiled, the masks are never stored."""
RECOMPUTED_FRACTION = 0.3
"""Traffic of a layer's recomputed forward pass, relative to that of forward and backward pass."""
LOGIT_TRAFFIC_BYTES = {"float32": 8, **dict.fromkeys(HALF_PRECISIONS, 6)}
"""Memory traffic of the loss per token and entry of the vocabulary: a logit is read, its gradient is written."""
WEIGHT_TRAFFIC_BYTES = {"float32": 0, **dict.fromkeys(HALF_PRECISIONS, 12)}
"""Memory traffic per parameter and micro-batch: weights and their gradients are converted."""
ACCUMULATION_TRAFFIC_BYTES = 12
"""Memory traffic per parameter of each micro-batch but the first: its gradient is added."""
UPDATE_TRAFFIC_BYTES = {"adafactor": 20.5, "adamw": 40}
"""Memory traffic per parameter and step of clipping and the optimizer. Adafactor with Triton reads gradients three
times, reads and writes parameters, and moves half a byte of sums. Without Triton it is 60; AdamW's is 28, and
clipping 12."""
FLOAT16_UPDATE_TRAFFIC_BYTES = 8
"""Additional traffic in float16: gradients are divided by the scale."""
LAYER_KERNELS, COMPILED_LAYER_KERNELS, RECOMPUTED_KERNELS = 60, 50, 15
"""Kernels of a layer and micro-batch."""
LOGITS_BLOCK_KERNELS = 7
"""Kernels of the head and the loss for each block of positions."""
STEP_KERNELS = {"adafactor": 105, "adamw": 60}
"""Kernels of a step besides those of layers and head: batch, embeddings, clipping and the optimizer."""
LAYER_HOST_SECONDS = 1e-3
"""Time in which the host launches the kernels of a layer, forward and backward: 0.9 to 1.1 ms by a core of an EPYC."""
STEP_HOST_SECONDS = 1e-3
"""Time of the host per step besides: the batch, clipping and the optimizer, or the launch of the step's CUDA graph, for
which 0.4 to 0.7 ms were counted without those of the driver."""
GRAPH_WORLD_SIZE = 1
"""Number of ranks with which a step, unless it recomputes activations, is one launch of a CUDA graph
(raylm/training/step_graph.py)."""
MIN_STEPS_TO_COMPILE = 4000
"""Optimizer steps from which trials are compiled on a GPU whose rates are not known: those of gpt2 in batches of 64 x
1,024 tokens on an H100."""
COMPILE_SECONDS = 45.0
"""Time to compile blocks in a trial: 27 to 41 s of two slow cores for a shape, then still with Adafactor, 4 s for the
short last batch and 2 s for evaluation."""


@dataclass(frozen=True)
class StepTime:
    """Time of an optimizer step on one GPU by its parts, in seconds."""

    products: float
    """Matrix products."""
    attention: float
    elementwise: float
    """Memory traffic of the other kernels of the model and the loss."""
    update: float
    """Memory traffic of clipping and the optimizer."""
    kernels: float
    """Starts of the kernels."""
    host: float
    """Time of the host, beside the GPU's."""

    @property
    def gpu(self) -> float:
        """Time that the GPU is busy."""
        return self.products + self.attention + self.elementwise + self.update + self.kernels

    def seconds(self, gpu_fraction: float = 1.0) -> float:
        """Return the time of the step on a fraction of a GPU: that of the GPU or of the host, the longer one."""
        return max(self.gpu / gpu_fraction, self.host)


@dataclass(frozen=True)
class GpuTimeModel:
    """Estimate of the time of a trial's optimizer steps on a GPU, or on several of a kind."""

    device: Device
    memory_model: MemoryModel
    """Shape, config, precision and ranks of the trial."""
    micro_batching: MicroBatching
    gpu_fraction: float = 1.0
    """Fraction of the GPU, at most 1."""

    def step_time(self, tokens: float | None = None, *, compiled: bool = False) -> StepTime:
        """Return the time of an optimizer step of some tokens per rank; by default of all of a rank's windows.

        Args:
            tokens: tokens of one rank.
            compiled: blocks are compiled.
        """
        model = self.memory_model
        tokens = model.max_rank_windows * model.config.context_length if tokens is None else tokens
        bytes_per_s = self.device.gb_per_s * 1e9 * BANDWIDTH_EFFICIENCY
        update_bytes = UPDATE_TRAFFIC_BYTES[model.config.optimizer]
        if model.precision == "float16":
            update_bytes += FLOAT16_UPDATE_TRAFFIC_BYTES
        return StepTime(
            products=self._product_seconds(tokens),
            attention=self._attention_seconds(tokens),
            elementwise=self._traffic_bytes(tokens, compiled) / bytes_per_s,
            update=model.shape.num_parameters * update_bytes / bytes_per_s,
            kernels=self._count_kernels(tokens, compiled) * KERNEL_SECONDS,
            host=STEP_HOST_SECONDS + self._launch_seconds(),
        )

    @property
    def _micro_batches(self) -> int:
        return -(-self.memory_model.max_rank_windows // self.micro_batching.micro_batch_size)

    def _product_seconds(self, tokens: float) -> float:
        """Return the time of the matrix products of layers and head."""
        shape = self.memory_model.shape
        block_flops = 24.0 * tokens * shape.num_layers * shape.hidden_size**2
        flops = block_flops * (4 if self.micro_batching.recompute else 3)
        flops += 6.0 * tokens * shape.vocab_size * shape.hidden_size
        return flops / (self.device.peak_tflops(self.memory_model.precision) * 1e12 * GEMM_EFFICIENCY)

    def _attention_seconds(self, tokens: float) -> float:
        """Return the time of causal attention, whose backward pass has five products instead of two."""
        shape, trial, precision = self.memory_model.shape, self.memory_model.config, self.memory_model.precision
        flops = 2.0 * tokens * trial.context_length * shape.num_layers * shape.hidden_size
        passes = (2 if self.micro_batching.recompute else 1) / ATTENTION_EFFICIENCY[0] + 2.5 / ATTENTION_EFFICIENCY[1]
        seconds = flops * passes / (self.device.peak_tflops(precision) * 1e12)
        uses_cudnn = self.device.name in CUDNN_GPUS and precision in HALF_PRECISIONS and trial.dropout == 0
        return seconds / CUDNN_SPEEDUP if uses_cudnn else seconds

    def _traffic_bytes(self, tokens: float, compiled: bool) -> float:
        """Return the memory traffic of the model's other kernels and of the loss."""
        shape, precision = self.memory_model.shape, self.memory_model.precision
        traffic = tokens * shape.num_layers * shape.hidden_size * self._layer_traffic(compiled)
        traffic += tokens * shape.vocab_size * LOGIT_TRAFFIC_BYTES[precision]
        traffic += shape.num_parameters * WEIGHT_TRAFFIC_BYTES[precision] * self._micro_batches
        return traffic + shape.num_parameters * ACCUMULATION_TRAFFIC_BYTES * (self._micro_batches - 1)

    def _count_kernels(self, tokens: float, compiled: bool) -> float:
        """Return the number of kernels of a step."""
        layer = COMPILED_LAYER_KERNELS if compiled else LAYER_KERNELS
        layer += RECOMPUTED_KERNELS if self.micro_batching.recompute else 0
        blocks = -(-tokens // (self._micro_batches * LOGITS_BLOCK_ROWS["cuda"]))
        step = STEP_KERNELS[self.memory_model.config.optimizer]
        return step + self._micro_batches * (self.memory_model.shape.num_layers * layer + blocks * LOGITS_BLOCK_KERNELS)

    def _layer_traffic(self, compiled: bool) -> float:
        """Return the memory traffic of a layer per token and unit of width, in bytes."""
        trial = self.memory_model.config
        layer_bytes = (COMPILED_LAYER_TRAFFIC_BYTES if compiled else LAYER_TRAFFIC_BYTES)[self.memory_model.precision]
        traffic = layer_bytes * (1 + RECOMPUTED_FRACTION if self.micro_batching.recompute else 1)
        return traffic + (DROPOUT_TRAFFIC_BYTES if trial.dropout != 0 and not compiled else 0)

    def _launch_seconds(self) -> float:
        """Return the time in which the host launches the kernels of the layers one by one, if it does."""
        if self.memory_model.world_size <= GRAPH_WORLD_SIZE and not self.micro_batching.recompute:
            return 0.0
        return self._micro_batches * self.memory_model.shape.num_layers * LAYER_HOST_SECONDS

    def min_steps_to_compile(self, tokens: float | None = None) -> int | None:
        """Return the number of optimizer steps from which compiling saves more time than it takes; None: it never does.

        Where the host is slower than the GPU, compiling saves nothing.
        """
        plain, compiled = (self.step_time(tokens, compiled=value).seconds(self.gpu_fraction) for value in (False, True))
        return int(COMPILE_SECONDS / (plain - compiled)) + 1 if compiled < plain else None

    def training_seconds(self, tokens: int, steps: int, total_steps: int | None = None) -> float:
        """Return the time of some optimizer steps, with that of compiling where the trial is compiled.

        Args:
            tokens: tokens of all ranks in these steps.
            steps: number of these steps.
            total_steps: number of steps of the trial, which decides whether it is compiled; None: these are all.
        """
        rank_tokens = tokens / max(1, steps) / self.memory_model.world_size
        min_steps = self.min_steps_to_compile()
        compiled = min_steps is not None and (total_steps or steps) >= min_steps
        step_time = self.step_time(rank_tokens, compiled=compiled)
        return steps * step_time.seconds(self.gpu_fraction) + (COMPILE_SECONDS if compiled else 0)


def min_steps_to_compile(
    device_name: str, memory_model: MemoryModel, micro_batching: MicroBatching, gpu_fraction: float
) -> int | None:
    """Return the number of optimizer steps from which a trial is compiled, or None if compiling saves nothing.

    Args:
        device_name: name of the GPU by torch.
        memory_model: the trial.
        micro_batching: its micro-batches.
        gpu_fraction: fraction of the GPU, at most 1.
    """
    device = find_device(device_name)
    if device is None:
        return MIN_STEPS_TO_COMPILE
    return GpuTimeModel(device, memory_model, micro_batching, gpu_fraction).min_steps_to_compile()
