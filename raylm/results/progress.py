"""How far a trial is, as plain data: what its row says and what a resumed trial goes on from. No torch, no Ray."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class MicroBatching:
    """How a batch goes through the model, so that it fits. It changes no number of the row but by rounding."""

    micro_batch_size: int
    """Windows at a time."""
    recompute: bool = False
    """Whether a block's activations are computed again in the backward pass (activation checkpointing)."""

    @property
    def next_smaller(self) -> MicroBatching | None:
        """What needs less memory: half the windows at a time; of one window, its activations again; else nothing."""
        if self.micro_batch_size > 1:
            return MicroBatching(-(-self.micro_batch_size // 2), self.recompute)
        return None if self.recompute else MicroBatching(1, recompute=True)

    def clamp(self, limit: MicroBatching | None) -> MicroBatching:
        """This, but for what would need more memory than the limit."""
        if limit is None:
            return self
        return MicroBatching(min(self.micro_batch_size, limit.micro_batch_size), self.recompute or limit.recompute)

    def __str__(self) -> str:
        """In words, for a person."""
        return f"micro-batch {self.micro_batch_size}{', activations recomputed' if self.recompute else ''}"


CURVE_POINTS = 100
"""Points of the training-loss curve that is kept of a trial."""


MIN_RISE_STANDARD_ERRORS = 4.0
"""Standard errors by which the loss must rise to be called going up."""


LOSS_NAMES = ("train_loss", "val_loss", "adj_val_loss")
"""Losses of an evaluation."""


@dataclass(frozen=True)
class EvalMetrics:
    """The losses of one evaluation, in nats."""

    epoch: int
    """The epoch that it is in or at the end of, counted from 1."""
    step: int
    """Optimizer steps done."""
    tokens_seen: int
    """Tokens trained on so far, over all epochs."""
    train_loss: float
    """Mean per token over the epoch so far."""
    val_loss: float
    """Mean per token of the validation split."""
    adj_val_loss: float
    """Mean per word of the validation split's original text."""

    @property
    def is_finite(self) -> bool:
        """Whether all its losses are numbers to rank by."""
        return all(map(math.isfinite, (self.train_loss, self.val_loss, self.adj_val_loss)))


@dataclass(frozen=True)
class StepMetrics:
    """How a trial is going, at a look at its loss."""

    step: int
    """Optimizer steps done."""
    total_steps: int
    """Of the whole trial."""
    loss: float
    """Training loss of the last step, in nats per token."""
    tokens_seen: int
    """Tokens trained on so far, over all epochs."""
    tokens_per_second: float
    """Over all optimizer steps so far."""

    @property
    def fraction_done(self) -> float:
        """Of the trial that is done, 0 to 1."""
        return self.step / self.total_steps

    @property
    def seconds_left(self) -> float:
        """In optimizer steps, at the rate so far."""
        return self.tokens_seen * (1 / self.fraction_done - 1) / self.tokens_per_second


@dataclass
class Progress:
    """How far a trial is."""

    total_steps: int
    micro_batch_size: int
    """Kept, so that a resumed trial adds up the same numbers in the same order wherever it goes on."""
    step: int = 0
    """Optimizer steps done."""
    tokens_seen: int = 0
    """Tokens trained on so far, over all epochs."""
    epoch_nll: float = 0.0
    """Summed training loss of the epoch so far, in nats."""
    epoch_tokens: int = 0
    """Tokens trained on in the epoch so far."""
    point_nll: float = 0.0
    """Summed training loss since the last point of the curve, in nats."""
    point_tokens: int = 0
    """Tokens trained on since the last point of the curve."""
    first_loss: float | None = None
    """Training loss of the first step, per token."""
    training_seconds: float = 0.0
    """Time in optimizer steps."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean training loss since the point before)."""
    evaluations: list[EvalMetrics] = field(default_factory=list)
    ranks: int = 1
    """Processes that share each step; each draws dropout masks of its own."""
    recompute: bool = False
    """Whether activations are computed again in the backward pass; kept, as the micro-batch is."""

    @property
    def best_metrics(self) -> EvalMetrics | None:
        """The evaluation with the lowest val loss, the earliest of equals."""
        return min(self.evaluations, key=lambda one: one.val_loss, default=None)

    @property
    def is_complete(self) -> bool:
        """Whether the last step is done."""
        return self.step == self.total_steps

    @property
    def train_loss(self) -> float:
        """Mean training loss per token over the epoch so far."""
        return self.epoch_nll / self.epoch_tokens

    @property
    def micro_batching(self) -> MicroBatching:
        """How a batch goes through the model."""
        return MicroBatching(self.micro_batch_size, self.recompute)

    @micro_batching.setter
    def micro_batching(self, fit: MicroBatching) -> None:
        self.micro_batch_size, self.recompute = fit.micro_batch_size, fit.recompute

    def step_metrics(self, loss: float) -> StepMetrics:
        """What there is to tell now, the last step having had this loss."""
        rate = self.tokens_seen / self.training_seconds
        return StepMetrics(self.step, self.total_steps, loss, self.tokens_seen, rate)

    @property
    def is_loss_rising(self) -> bool:
        """Whether the training loss at the end is higher than its minimum by more than noise.

        Both are means of a tenth of the curve; the noise of a point follows from the differences between neighbours.
        """
        losses = [loss for _, loss in self.curve]
        span = len(losses) // 10
        if span < 3:
            return False
        means = [statistics.fmean(losses[end - span : end]) for end in range(span, len(losses) + 1)]
        steps = [one - other for one, other in itertools.pairwise(losses)]
        noise = math.sqrt(statistics.fmean(step * step for step in steps) / 2)  # of a point, its trend taken out
        return means[-1] - min(means) > MIN_RISE_STANDARD_ERRORS * noise * math.sqrt(2 / span)

    def start_epoch(self) -> None:
        """Begins the mean of a new epoch."""
        self.epoch_nll, self.epoch_tokens = 0.0, 0

    def add_step(self, nll: float, tokens: int) -> None:
        """Counts an optimizer step with its summed loss in nats."""
        self.step += 1
        self.tokens_seen += tokens
        self.epoch_nll += nll
        self.epoch_tokens += tokens
        self.point_nll += nll
        self.point_tokens += tokens
        if self.first_loss is None:
            self.first_loss = nll / tokens
        if self.step * CURVE_POINTS // self.total_steps > (self.step - 1) * CURVE_POINTS // self.total_steps:
            self.curve.append((self.step, self.point_nll / self.point_tokens))
            self.point_nll, self.point_tokens = 0.0, 0

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Progress:
        """What `as_dict` gave, also after a way through JSON."""
        curve = [(int(step), float(loss)) for step, loss in data["curve"]]
        evaluations = [_check_types(EvalMetrics(**one)) for one in data["evaluations"]]
        return _check_types(cls(**{**data, "curve": curve, "evaluations": evaluations}))


JSON_TYPES: dict[Any, Any] = {"bool": bool, "int": int, "float": (int, float), "float | None": (int, float, type(None))}
"""What JSON may hold for a field, by the name of its type."""
T = TypeVar("T", EvalMetrics, Progress)


def _check_types(instance: T) -> T:
    """What was made, its fields being of the types that they are said to be.

    Raises:
        TypeError: if one is not.
    """
    for one in dataclasses.fields(instance):
        value = getattr(instance, one.name)
        if not isinstance(value, JSON_TYPES.get(one.type, object)):
            raise TypeError(f"{one.name} is {value!r}")
    return instance
