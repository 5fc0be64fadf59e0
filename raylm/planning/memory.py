"""Memory that a trial needs on its device, its micro-batches, and the size of its checkpoints. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.catalog import ModelShape
from raylm.config.trial import TrialConfig
from raylm.numerics import LOGITS_BLOCK_ROWS, QUERY_BLOCK_ROWS, windows_per_rank
from raylm.results.progress import MicroBatching

# Tensors saved by autograd for the backward pass; tests count them with `torch.autograd.graph.saved_tensors_hooks`.
SAVED_ACTIVATION_BYTES = {"float32": 64, "bfloat16": 36}
"""Bytes per token, layer and unit of width of GPT-2 with fused attention and fused GELU, by precision."""
LAYER_INPUT_BYTES = 4
"""Bytes per token, layer and unit of width of a block's input, float32 in both precisions; all that recomputation
saves."""
DROPOUT_MASK_BYTES = 2
"""Additional bytes per token, layer and unit of width with dropout: its masks, a byte per value."""
ATTENTION_PROBS_BYTES = {"cpu": {"float32": 5, "bfloat16": 3}, "cuda": {"float32": 0, "bfloat16": 0}}
"""Bytes per token, layer, head and visible position with dropout: the probabilities and their mask, which attention
saves unless it is fused."""
OPTIMIZER_STATE_BYTES = {"adafactor": 0, "adamw": 8}
"""Optimizer state per parameter; Adafactor's rows and columns are about 10 MB even for gpt2-xl."""
LOGITS_BYTES = {"float32": 4, "bfloat16": 6}
"""Bytes per logit of a block: the logit itself, and in bfloat16 a copy in float32."""
RUNTIME_BASELINE_BYTES = {"cpu": 530 * 2**20, "cuda": 600 * 2**20}
"""Memory of a trial's process without a model: on a CPU with torch, transformers and Ray, on a GPU the CUDA context."""
GRADIENT_OVERLAP_FACTOR = 1.1
"""Extra peak memory, in units of gradient size, when the batch is a single micro-batch. Gradients replace activations,
but an allocator does not fill every gap: bench/plan_accuracy.py measures 0.5 to 1.4, depending on the machine."""
USABLE_MEMORY_FRACTION = 0.85
"""Fraction of a device's memory that is planned with; the rest is left to the allocator and the runtime."""


def checkpoint_bytes(shape: ModelShape, optimizer: str) -> int:
    """Return the size of one checkpoint: float32 weights, and AdamW's two moments."""
    return shape.num_parameters * (4 + OPTIMIZER_STATE_BYTES[optimizer])


@dataclass(frozen=True)
class MemoryModel:
    """Estimate of a trial's memory from the shape of its model, its config and its device."""

    shape: ModelShape
    config: TrialConfig
    device_type: str
    """`cpu` or `cuda`."""
    precision: str
    """`float32` or `bfloat16`; the weights are float32 in both."""
    world_size: int = 1
    """Number of processes (ranks) that share each batch."""

    @property
    def max_rank_windows(self) -> int:
        """Largest number of windows of a batch on one rank."""
        return windows_per_rank(self.config.batch_size, self.world_size)

    def _layer_bytes(self, micro_batching: MicroBatching) -> int:
        """Return the bytes saved for the backward pass of one layer, without copies of its weights in bfloat16."""
        shape, trial = self.shape, self.config
        tokens = micro_batching.micro_batch_size * trial.context_length
        if trial.dropout == 0:  # None is the model's own dropout
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
        """Return the peak memory of a step: at the loss, in the backward pass, or in the optimizer's update."""
        shape, tokens = self.shape, micro_batching.micro_batch_size * self.config.context_length
        per_parameter = 4 + OPTIMIZER_STATE_BYTES[self.config.optimizer] + (2 if self.precision == "bfloat16" else 0)
        per_parameter += 4 if self.world_size > 1 else 0  # buckets in which gradients are exchanged
        gradients, saved = 4 * shape.num_parameters, self.saved_bytes(micro_batching)
        head = 2 * 4 * shape.vocab_size * shape.hidden_size  # its gradient while computed, and the optimizer's update
        logits = LOGITS_BYTES[self.precision] * min(tokens, LOGITS_BLOCK_ROWS[self.device_type]) * shape.vocab_size
        if micro_batching.micro_batch_size < self.max_rank_windows:  # with the gradients of earlier micro-batches
            overlap = gradients
        else:
            overlap = 0 if micro_batching.recompute else int(GRADIENT_OVERLAP_FACTOR * gradients)
        at_the_loss = saved + head + logits + overlap
        in_backward = gradients + saved + self._layer_bytes(micro_batching) if micro_batching.recompute else 0
        in_update = gradients + head
        baseline = RUNTIME_BASELINE_BYTES[self.device_type]
        return baseline + per_parameter * shape.num_parameters + max(at_the_loss, in_backward, in_update)

    def choose_micro_batching(self, available_bytes: float) -> MicroBatching:
        """Return the largest micro-batch that fits, of a batch divided into equal parts of at least one window.

        Activations are recomputed only if no micro-batch fits otherwise. If none fits at all, return the smallest.
        """
        sizes = dict.fromkeys(-(-self.max_rank_windows // parts) for parts in range(1, self.max_rank_windows + 1))
        options = [MicroBatching(size, recompute) for recompute in (False, True) for size in sizes]
        limit = available_bytes * USABLE_MEMORY_FRACTION
        return next((option for option in options if self.peak_bytes(option) <= limit), options[-1])
