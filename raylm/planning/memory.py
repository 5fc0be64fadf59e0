"""Memory that a trial needs on its device, its micro-batches, and the size of its checkpoints. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.catalog import ModelShape
from raylm.config.trial import TrialConfig
from raylm.numerics import HALF_PRECISIONS, QUERY_BLOCK_ROWS, logits_block_rows, windows_per_rank
from raylm.results.progress import MicroBatching
from raylm.units import GIB

# Tensors saved by autograd for the backward pass; tests count them with `torch.autograd.graph.saved_tensors_hooks`.
SAVED_ACTIVATION_BYTES = {"float32": 64, **dict.fromkeys(HALF_PRECISIONS, 36)}
"""Bytes per token, layer and unit of width of GPT-2 with fused attention and fused GELU, by precision."""
LAYER_INPUT_BYTES = 4
"""Bytes per token, layer and unit of width of a block's input, float32 in all precisions; all that recomputation
saves."""
DROPOUT_MASK_BYTES = 2
"""Additional bytes per token, layer and unit of width with dropout: its masks, a byte per value."""
ATTENTION_PROBS_BYTES = {
    "cpu": {"float32": 5, **dict.fromkeys(HALF_PRECISIONS, 3)},
    "cuda": dict.fromkeys(("float32", *HALF_PRECISIONS), 0),
}
"""Bytes per token, layer, head and visible position with dropout: the probabilities and their mask, which attention
saves unless it is fused."""
UNFUSED_ATTENTION_BYTES, UNFUSED_DROPOUT_BYTES = 4, 8
"""Bytes per token, layer, head and position, visible or not, of torch's attention from single operations, which `mps`
has for training: the probabilities; with dropout also a mask in float32 and the product of both. So many bytes with
dropout also have a layer's two other masks, per token and unit of width."""
OPTIMIZER_STATE_BYTES = {"adafactor": 0, "adamw": 8}
"""Optimizer state per parameter; Adafactor's rows and columns are about 10 MB even for gpt2-xl."""
GPU_LOGITS_BYTES = {"float32": 4, **dict.fromkeys(HALF_PRECISIONS, 6)}
CPU_LOGITS_BYTES = {"float32": 4, **dict.fromkeys(HALF_PRECISIONS, 2)}
LOGITS_BYTES = {"cpu": CPU_LOGITS_BYTES, "cuda": GPU_LOGITS_BYTES, "mps": GPU_LOGITS_BYTES}
"""Bytes per logit of a block. A GPU has logits in float32, and a second tensor for their gradient in 16 bits."""
HIDDEN_STATE_BYTES = 16
"""Bytes per token and unit of width at the loss: the last block's output, its norm, and the gradient of that."""
RUNTIME_BASELINE_BYTES = {"cpu": 530 * 2**20, "cuda": 600 * 2**20, "mps": 530 * 2**20}
"""Memory of a trial's process without a model: on a CPU with torch, transformers and Ray, on a GPU the CUDA context. A
Mac has one memory for both: that of `mps` is a CPU's."""
GRADIENT_OVERLAP_FACTOR = 1.1
"""Extra peak memory on a CPU, in units of gradient size, when the batch is a single micro-batch. Gradients replace
activations, but glibc does not fill every gap: bench/plan_accuracy.py measures 0.5 to 1.4, depending on the machine.
CUDA's allocator hands out what was freed: 0."""
USABLE_MEMORY_FRACTION = 0.85
"""Fraction of a device's memory that is planned with; the rest is left to the allocator and the runtime."""


MAX_MEMORY_FRACTION = 0.95
"""Fraction of a GPU's memory of which a trial that needs more is refused: it would run out of memory."""
FALLBACK_RATIO = 0.75
"""Memory to continue with after a GPU's ran out, relative to the memory of before: each attempt costs a step."""


def checkpoint_bytes(shape: ModelShape, optimizer: str) -> int:
    """Return the size of one checkpoint: float32 weights, and AdamW's two moments."""
    return shape.num_parameters * (4 + OPTIMIZER_STATE_BYTES[optimizer])


@dataclass(frozen=True)
class MemoryModel:
    """Estimate of a trial's memory from the shape of its model, its config and its device."""

    shape: ModelShape
    config: TrialConfig
    device_type: str
    """`cpu`, `cuda` or `mps`."""
    precision: str
    """`float32`, `bfloat16` or `float16`; the weights are float32 in all of them."""
    world_size: int = 1
    """Number of processes (ranks) that share each batch."""

    @property
    def max_rank_windows(self) -> int:
        """Largest number of windows of a batch on one rank."""
        return windows_per_rank(self.config.batch_size, self.world_size)

    def _layer_bytes(self, micro_batching: MicroBatching) -> int:
        """Return the bytes saved for the backward pass of one layer, without copies of its weights in 16 bits."""
        shape, trial = self.shape, self.config
        tokens = micro_batching.micro_batch_size * trial.context_length
        has_dropout = trial.dropout != 0  # None is the model's own dropout
        if self.device_type == "mps":
            attention = UNFUSED_ATTENTION_BYTES + (UNFUSED_DROPOUT_BYTES if has_dropout else 0)
            masks = UNFUSED_DROPOUT_BYTES if has_dropout else 0
            width = shape.hidden_size * (SAVED_ACTIVATION_BYTES[self.precision] + masks)
            return tokens * (width + attention * shape.num_heads * trial.context_length)
        if not has_dropout:
            return tokens * shape.hidden_size * SAVED_ACTIVATION_BYTES[self.precision]
        visible = min(trial.context_length, (trial.context_length + QUERY_BLOCK_ROWS) // 2)  # mean over positions
        attention = shape.num_heads * visible * ATTENTION_PROBS_BYTES[self.device_type][self.precision]
        return tokens * (shape.hidden_size * (SAVED_ACTIVATION_BYTES[self.precision] + DROPOUT_MASK_BYTES) + attention)

    def saved_bytes(self, micro_batching: MicroBatching) -> int:
        """Return the bytes saved for the backward pass of all layers."""
        shape, tokens = self.shape, micro_batching.micro_batch_size * self.config.context_length
        inputs = tokens * shape.hidden_size * LAYER_INPUT_BYTES
        return shape.num_layers * (inputs if micro_batching.recompute else self._layer_bytes(micro_batching))

    def peak_bytes(self, micro_batching: MicroBatching) -> int:
        """Return the peak memory of a step, at the loss or in the backward pass; the update takes less.

        On a GPU it is at most 5 % below and 15 % above the bytes of all tensors that are alive (docs/benchmarks.md).
        """
        shape, trial = self.shape, self.config
        persistent = (4 + OPTIMIZER_STATE_BYTES[trial.optimizer]) * shape.num_parameters
        persistent += 4 * shape.num_parameters if self.world_size > 1 else 0  # buckets in which gradients are exchanged
        accumulates = micro_batching.micro_batch_size < self.max_rank_windows  # beside gradients of earlier ones
        gradients, head_gradient = 4 * shape.num_parameters, 4 * shape.vocab_size * shape.hidden_size
        saved = self.saved_bytes(micro_batching) + self._copied_weight_bytes(micro_batching)
        at_the_loss = saved + self._loss_bytes(micro_batching)
        at_the_loss += gradients if accumulates else self._overlap_bytes(micro_batching)
        # of the last layer, with the inputs of all others, or of the first one, with the gradients of all others
        in_backward = gradients + saved + head_gradient if accumulates else max(saved + head_gradient, gradients)
        in_backward = (in_backward + self._layer_bytes(micro_batching)) if micro_batching.recompute else 0
        # the head's and the embedding's gradient of the same weight; while they are added, their sum
        at_the_embedding = gradients + (3 if accumulates else 2) * head_gradient
        baseline = RUNTIME_BASELINE_BYTES[self.device_type]
        return baseline + persistent + max(at_the_loss, in_backward, at_the_embedding)

    def _copied_weight_bytes(self, micro_batching: MicroBatching) -> int:
        """Return the bytes of weights copied to 16 bits: all, or with recomputation those of the head and a layer."""
        if self.precision == "float32":
            return 0
        shape, head = self.shape, self.shape.vocab_size * self.shape.hidden_size
        layers = 12 * shape.hidden_size**2 * (1 if micro_batching.recompute else shape.num_layers)
        return 2 * (head + layers)

    def _loss_bytes(self, micro_batching: MicroBatching) -> int:
        """Return the bytes of a block of logits, the head's gradient, and the hidden states with their gradient."""
        shape, tokens = self.shape, micro_batching.micro_batch_size * self.config.context_length
        rows = min(tokens, logits_block_rows(self.device_type, self.precision))
        logits = LOGITS_BYTES[self.device_type][self.precision] * rows * shape.vocab_size
        is_short = self.device_type == "cpu" and self.precision == "bfloat16"  # where a block's gradient is a product
        gradient = (6 if is_short else 4) * shape.vocab_size * shape.hidden_size
        return logits + gradient + HIDDEN_STATE_BYTES * tokens * shape.hidden_size

    def _overlap_bytes(self, micro_batching: MicroBatching) -> int:
        """Return the bytes by which gradients and activations of a whole batch overlap on a CPU."""
        if self.device_type != "cpu" or micro_batching.recompute:
            return 0
        return int(GRADIENT_OVERLAP_FACTOR * 4 * self.shape.num_parameters)

    @property
    def candidates(self) -> list[MicroBatching]:
        """Splits of the batch into equal parts of at least one window, the fastest first.

        Recomputing activations takes longer than any number of micro-batches; of a kind, the largest is the fastest.
        """
        sizes = dict.fromkeys(-(-self.max_rank_windows // parts) for parts in range(1, self.max_rank_windows + 1))
        return [MicroBatching(size, recompute) for recompute in (False, True) for size in sizes]

    def choose_micro_batching(self, available_bytes: float) -> MicroBatching:
        """Return the fastest candidate that fits; if none fits, the one that needs least.

        A whole batch may need less than one window: no gradients of earlier micro-batches lie beside it.
        """
        limit = available_bytes * USABLE_MEMORY_FRACTION
        fitting = (candidate for candidate in self.candidates if self.peak_bytes(candidate) <= limit)
        return next(fitting, None) or min(self.candidates, key=self.peak_bytes)

    def next_smaller(self, micro_batching: MicroBatching) -> MicroBatching | None:
        """Return the micro-batching to continue with after memory ran out, or None if none needs less.

        On a GPU it is the fastest candidate that needs clearly less by its peak, else the one that needs least. On a
        CPU, whose process has more in its memory than a trial's tensors, and on `mps`, where no estimate was compared
        with a measurement, the windows are halved.
        """
        if self.device_type != "cuda":
            return micro_batching.next_smaller
        used = self._tensor_bytes(micro_batching)
        candidates = (candidate for candidate in self.candidates if candidate.recompute or not micro_batching.recompute)
        smaller = [candidate for candidate in candidates if self._tensor_bytes(candidate) < used]
        clearly = (candidate for candidate in smaller if self._tensor_bytes(candidate) <= FALLBACK_RATIO * used)
        return next(clearly, None) or min(smaller, key=self._tensor_bytes, default=None)

    def min_bytes(self, *, recompute: bool = True) -> int:
        """Return the least peak memory of any candidate, or of those that do not recompute activations."""
        return min(self.peak_bytes(candidate) for candidate in self.candidates if recompute or not candidate.recompute)

    def describe_excess(self, available_bytes: float) -> str | None:
        """Return a message if not even the smallest candidate fits into a GPU's memory, else None."""
        needed, trial = self.min_bytes(), self.config
        if self.device_type != "cuda" or needed <= available_bytes * MAX_MEMORY_FRACTION:
            return None
        return (
            f"{trial.model} at context length {trial.context_length:,} with {trial.optimizer} needs "
            f"{needed / GIB:.1f} GiB of GPU memory even with recomputed activations, and has "
            f"{available_bytes / GIB:.1f} GiB; use a larger GPU, a smaller model or a shorter context"
        )

    def _tensor_bytes(self, micro_batching: MicroBatching) -> int:
        """Return the peak memory without that of the runtime."""
        return self.peak_bytes(micro_batching) - RUNTIME_BASELINE_BYTES[self.device_type]
