"""Progress of a trial as plain data: the numbers of its row, and what a resumed trial starts from."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass, field

CURVE_POINTS = 100
"""Points of the training-loss curve that are saved of a trial."""
LOSS_NAMES = ("train_loss", "val_loss", "adj_val_loss")
"""Losses of an evaluation."""
MIN_RISE_STANDARD_ERRORS = 4.0
"""Standard errors by which the training loss must exceed its minimum to count as rising."""


@dataclass(frozen=True)
class MicroBatching:
    """Split of a batch into micro-batches that fit into memory. It affects the numbers of a row by rounding only."""

    micro_batch_size: int
    """Windows per forward pass."""
    recompute: bool = False
    """True if the activations of a block are recomputed in the backward pass (activation checkpointing)."""

    @property
    def next_smaller(self) -> MicroBatching | None:
        """Split that needs less memory: half the windows, then recomputed activations; None if there is none."""
        if self.micro_batch_size > 1:
            return MicroBatching(-(-self.micro_batch_size // 2), self.recompute)
        return None if self.recompute else MicroBatching(1, recompute=True)

    def clamp(self, limit: MicroBatching | None, max_windows: int) -> MicroBatching:
        """Return this split, or one that needs no more memory than a limit, of a batch of at most so many windows.

        Windows are compared only between splits of a kind: a whole batch that is recomputed may need less than one
        window that is not.
        """
        if limit is None or (self.recompute and not limit.recompute):
            return self
        if limit.recompute and not self.recompute:
            return MicroBatching(min(limit.micro_batch_size, max_windows), recompute=True)
        return MicroBatching(min(self.micro_batch_size, limit.micro_batch_size), self.recompute)

    def __str__(self) -> str:
        """Return a description for messages."""
        return f"micro-batch {self.micro_batch_size}{', activations recomputed' if self.recompute else ''}"


@dataclass(frozen=True)
class EvalMetrics:
    """Losses of one evaluation, in nats."""

    epoch: int
    """Epoch that contains the evaluation or ends with it, counted from 1."""
    step: int
    """Optimizer steps done."""
    tokens_seen: int
    """Training tokens so far, over all epochs."""
    train_loss: float
    """Mean per token over the epoch so far."""
    val_loss: float
    """Mean per token of the validation split."""
    adj_val_loss: float
    """Mean per word of the original text of the validation split, between white space; a split without a word counts
    as one of one word."""
    precision: str | None = field(default=None, metadata={"omit_none": True})
    """Precision of the evaluation: `float32`, `bfloat16` or `float16`; None if it was not recorded."""

    @property
    def is_finite(self) -> bool:
        """True if neither train nor val loss is NaN or infinite."""
        return math.isfinite(self.train_loss) and math.isfinite(self.val_loss)


@dataclass(frozen=True)
class StepMetrics:
    """Metrics of a running trial after an optimizer step."""

    step: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps of the whole trial."""
    loss: float
    """Training loss of the last step, in nats per token."""
    tokens_seen: int
    """Training tokens so far, over all epochs."""
    tokens_per_second: float
    """Mean over all optimizer steps so far."""

    @property
    def fraction_done(self) -> float:
        """Fraction of the trial's steps that are done, 0 to 1."""
        return self.step / self.total_steps

    @property
    def seconds_left(self) -> float:
        """Estimated time of the remaining optimizer steps at the mean rate so far."""
        return self.tokens_seen * (1 / self.fraction_done - 1) / self.tokens_per_second


@dataclass(frozen=True)
class LossScale:
    """State of the loss's scale in float16, as `raylm.training.optim.loss_scaler` updates it."""

    scale: float = 2.0**13
    """Factor of the loss. It starts where elements of a gradient may reach 8; with torch's 2^16 they overflow at 1, as
    those of small batches do."""
    good_steps: int = 0
    """Steps without an overflow since the scale changed."""
    skipped_steps: int = 0
    """Optimizer steps of the trial that were skipped, as a gradient was not finite."""
    overflows_in_a_row: int = 0
    """Latest steps that were skipped, or whose loss was not finite."""


@dataclass
class Progress:
    """State of a trial besides its tensors, saved with each checkpoint."""

    total_steps: int
    micro_batch_size: int
    """Windows per forward pass; saved so that a resumed trial sums the same numbers in the same order."""
    step: int = 0
    """Optimizer steps done."""
    tokens_seen: int = 0
    """Training tokens so far, over all epochs."""
    epoch_nll: float = 0.0
    """Summed training loss of the epoch so far, in nats."""
    epoch_tokens: int = 0
    """Training tokens of the epoch so far."""
    point_nll: float = 0.0
    """Summed training loss since the last point of the curve, in nats."""
    point_tokens: int = 0
    """Training tokens since the last point of the curve."""
    first_loss: float | None = None
    """Training loss of the first step, in nats per token."""
    training_seconds: float = 0.0
    """Time in optimizer steps."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """Points (step, mean training loss since the previous point in nats per token)."""
    evaluations: list[EvalMetrics] = field(default_factory=list)
    ranks: int = 1
    """Processes that train the trial; each draws its own dropout masks."""
    recompute: bool = False
    """True if activations are recomputed in the backward pass; saved for the same reason as `micro_batch_size`."""
    loss_scale: LossScale | None = field(default=None, metadata={"omit_none": True})
    """State of float16's scale; None if no step was made in float16."""

    @property
    def best_metrics(self) -> EvalMetrics | None:
        """Evaluation with the lowest val loss, the earliest of equal ones."""
        return min(self.evaluations, key=lambda metrics: metrics.val_loss, default=None)

    @property
    def is_complete(self) -> bool:
        """True if the last step is done."""
        return self.step == self.total_steps

    @property
    def train_loss(self) -> float:
        """Mean training loss over the epoch so far, in nats per token; NaN if no step had a finite one."""
        return self.epoch_nll / self.epoch_tokens if self.epoch_tokens else math.nan

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps that were skipped, as their gradients overflowed float16."""
        return self.loss_scale.skipped_steps if self.loss_scale else 0

    @property
    def micro_batching(self) -> MicroBatching:
        """Split of a batch into micro-batches."""
        return MicroBatching(self.micro_batch_size, self.recompute)

    @micro_batching.setter
    def micro_batching(self, value: MicroBatching) -> None:
        self.micro_batch_size, self.recompute = value.micro_batch_size, value.recompute

    @property
    def is_loss_rising(self) -> bool:
        """True if the training loss at the end is above its minimum by more than noise.

        Both are means over a tenth of the curve; the noise of a point is estimated from differences of neighbours.
        """
        losses = [loss for _, loss in self.curve]
        span = len(losses) // 10
        if span < 3:
            return False
        means = [statistics.fmean(losses[end - span : end]) for end in range(span, len(losses) + 1)]
        differences = [loss - next_loss for loss, next_loss in itertools.pairwise(losses)]
        noise = math.sqrt(statistics.fmean(d * d for d in differences) / 2)  # of one point, without the trend
        return means[-1] - min(means) > MIN_RISE_STANDARD_ERRORS * noise * math.sqrt(2 / span)

    def step_metrics(self, loss: float) -> StepMetrics:
        """Return the metrics after the last step, given its training loss in nats per token."""
        rate = self.tokens_seen / self.training_seconds
        return StepMetrics(self.step, self.total_steps, loss, self.tokens_seen, rate)

    def start_epoch(self) -> None:
        """Reset the running mean of the epoch's training loss."""
        self.epoch_nll, self.epoch_tokens = 0.0, 0

    def add_step(self, nll: float, tokens: int) -> None:
        """Count an optimizer step.

        Args:
            nll: summed training loss of its tokens, in nats; if it is not finite, it is part of no mean.
        """
        self.step += 1
        self.tokens_seen += tokens
        if math.isfinite(nll):
            self._add_loss(nll, tokens)
        is_point = self.step * CURVE_POINTS // self.total_steps > (self.step - 1) * CURVE_POINTS // self.total_steps
        if is_point and self.point_tokens:
            self.curve.append((self.step, self.point_nll / self.point_tokens))
            self.point_nll, self.point_tokens = 0.0, 0

    def _add_loss(self, nll: float, tokens: int) -> None:
        """Add a step's loss to the means."""
        self.epoch_nll += nll
        self.epoch_tokens += tokens
        self.point_nll += nll
        self.point_tokens += tokens
        if self.first_loss is None:
            self.first_loss = nll / tokens
