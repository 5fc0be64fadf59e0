"""Bytes that a trial needs on its device, and how it is made to fit. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from raylm.config.catalog import ModelShape
from raylm.config.trial import TrialConfig
from raylm.numerics import LOGITS_BLOCK_ROWS, QUERY_BLOCK_ROWS, windows_per_rank
from raylm.results.progress import MicroBatching

# What autograd keeps for the backward pass. Tests count it with `torch.autograd.graph.saved_tensors_hooks`.
SAVED_ACTIVATION_BYTES = {"float32": 64, "bfloat16": 36}
"""Per token, layer and unit of width, on GPT-2 with fused attention and fused GELU, by precision."""
LAYER_INPUT_BYTES = 4
"""Per token, layer and unit of width: a block's input, in float32 in either precision; all of it that recomputing
keeps."""
DROPOUT_MASK_BYTES = 2
"""More of them with dropout: its masks, a byte for each value."""
ATTENTION_PROBS_BYTES = {"cpu": {"float32": 5, "bfloat16": 3}, "cuda": {"float32": 0, "bfloat16": 0}}
"""Per token, layer, head and position looked at, with dropout: the probabilities and their mask, which attention
keeps where it is not fused."""
OPTIMIZER_STATE_BYTES = {"adafactor": 0, "adamw": 8}
"""State per parameter; Adafactor's rows and columns are some ten MB even for gpt2-xl."""
LOGITS_BYTES = {"float32": 4, "bfloat16": 6}
"""Per logit of a block: the logits, and in bfloat16 the same in float32."""
RUNTIME_BASELINE_BYTES = {"cpu": 530 * 2**20, "cuda": 600 * 2**20}
"""A trial's process before any model: with torch, transformers and Ray on a CPU, the context's part of a GPU."""
GRADIENT_OVERLAP_FACTOR = 1.1
"""What comes to all activations where a batch goes through at once, in sizes of the gradients. Gradients take the place
of activations, but an allocator does not fill every gap: bench/plan_accuracy.py has 0.5 to 1.4, by the machine."""
USABLE_MEMORY_FRACTION = 0.85
"""Share of a device's memory that is planned with; the rest is the allocator's and the runtime's."""


@dataclass(frozen=True)
class MemoryModel:
    """What the memory of a trial follows from."""

    shape: ModelShape
    config: TrialConfig
    device_type: str
    """`cpu` or `cuda`."""
    precision: str
    """`float32` or `bfloat16`; the weights are float32 in both."""
    world_size: int = 1
    """Processes that share each batch."""

    @property
    def max_rank_windows(self) -> int:
        """Windows of a batch that a rank has, at most."""
        return windows_per_rank(self.config.batch_size, self.world_size)

    def _layer_bytes(self, micro_batching: MicroBatching) -> int:
        """What autograd keeps of one layer for the backward pass, the copies of its weights in bfloat16 aside."""
        shape, trial = self.shape, self.config
        tokens = micro_batching.micro_batch_size * trial.context_length
        if trial.dropout == 0:  # None is the model's own
            return tokens * shape.hidden_size * SAVED_ACTIVATION_BYTES[self.precision]
        seen = min(trial.context_length, (trial.context_length + QUERY_BLOCK_ROWS) // 2)  # in the mean
        attention = shape.num_heads * seen * ATTENTION_PROBS_BYTES[self.device_type][self.precision]
        return tokens * (shape.hidden_size * (SAVED_ACTIVATION_BYTES[self.precision] + DROPOUT_MASK_BYTES) + attention)

    def saved_bytes(self, micro_batching: MicroBatching) -> int:
        """What autograd keeps of all layers."""
        inputs = (
            micro_batching.micro_batch_size * self.config.context_length * self.shape.hidden_size * LAYER_INPUT_BYTES
        )
        return self.shape.num_layers * (inputs if micro_batching.recompute else self._layer_bytes(micro_batching))

    def peak_bytes(self, micro_batching: MicroBatching) -> int:
        """Peak of a training step on the device: at the loss, in the backward pass, or in the optimizer's update."""
        shape, tokens = self.shape, micro_batching.micro_batch_size * self.config.context_length
        per_parameter = 4 + OPTIMIZER_STATE_BYTES[self.config.optimizer] + (2 if self.precision == "bfloat16" else 0)
        per_parameter += 4 if self.world_size > 1 else 0  # the buckets in which gradients are exchanged
        gradients, kept = 4 * shape.num_parameters, self.saved_bytes(micro_batching)
        head = (
            2 * 4 * shape.vocab_size * shape.hidden_size
        )  # its gradient while it is made; the optimizer's update of it
        logits = LOGITS_BYTES[self.precision] * min(tokens, LOGITS_BLOCK_ROWS[self.device_type]) * shape.vocab_size
        if micro_batching.micro_batch_size < self.max_rank_windows:  # gradients of the micro-batch before are there
            beside = gradients
        else:
            beside = 0 if micro_batching.recompute else int(GRADIENT_OVERLAP_FACTOR * gradients)
        at_the_loss = kept + head + logits + beside
        in_backward = gradients + kept + self._layer_bytes(micro_batching) if micro_batching.recompute else 0
        in_update = gradients + head
        return (
            RUNTIME_BASELINE_BYTES[self.device_type]
            + per_parameter * shape.num_parameters
            + max(at_the_loss, in_backward, in_update)
        )

    def choose_micro_batching(self, available_bytes: float) -> MicroBatching:
        """As many windows at a time as fit, in equal parts of the batch, at least one; recomputed where none fits."""
        sizes = dict.fromkeys(-(-self.max_rank_windows // parts) for parts in range(1, self.max_rank_windows + 1))
        fits = [MicroBatching(size, recompute) for recompute in (False, True) for size in sizes]
        return next((fit for fit in fits if self.peak_bytes(fit) <= available_bytes * USABLE_MEMORY_FRACTION), fits[-1])
