"""What a sweep will cost, before it runs: tokens, steps, FLOPs, memory, disk, time. No torch, no hub, no Ray."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylm.config import search_space
from raylm.config.catalog import DATASETS, ModelShape, find_shape
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.data import preparation
from raylm.planning import memory
from raylm.planning.memory import MemoryModel
from raylm.planning.throughput import Placement
from raylm.results.progress import MicroBatching, Progress
from raylm.units import GIB, format_duration, pluralize

COST_FIELDS = ("dataset", "model", "context_length", "batch_size", "epochs", "max_train_tokens", "optimizer")
"""What the cost of a trial depends on."""
MAX_REPRESENTATIVE_TRIALS = 1000
"""Of a search's space that are looked at."""
LEGEND = (
    "micro: windows at a time, r where activations are recomputed; GiB: of the device at its peak; disk: GiB",
    "~ estimated; ? not known before model and dataset are fetched",
)


@dataclass(frozen=True)
class TrialPlan:
    """What one trial costs."""

    config: TrialConfig
    tokens: int
    """Predicted in training, over all epochs."""
    steps: int
    """Optimizer steps."""
    is_exact: bool
    """Whether the dataset's size is counted; else it is about right."""
    shape: ModelShape | None
    """None where it is not known before the model is fetched."""
    placement: Placement | None = None
    """What it runs on; None where that is not known."""

    @property
    def flops(self) -> float | None:
        """FLOPs of training, none of them counted twice where activations are recomputed."""
        if self.shape is None:
            return None
        return self.tokens * self.shape.training_flops_per_token(self.config.context_length)

    @property
    def checkpoint_bytes(self) -> int | None:
        """Disk for the best and the latest checkpoint: float32 weights, and AdamW's two moments."""
        if self.shape is None:
            return None
        one = self.shape.num_parameters * (4 + memory.OPTIMIZER_STATE_BYTES[self.config.optimizer])
        return one * min(2, self.config.epochs * self.config.evals_per_epoch)

    @property
    def memory_model(self) -> MemoryModel | None:
        """What its memory and its time follow from."""
        if self.shape is None or self.placement is None:
            return None
        return MemoryModel(
            self.shape, self.config, self.placement.card.device, self.placement.precision, self.placement.world_size
        )

    @property
    def micro_batching(self) -> MicroBatching | None:
        """How its batch goes through the model."""
        return (
            self.memory_model.choose_micro_batching(self.placement.available_bytes)
            if self.memory_model and self.placement
            else None
        )

    @property
    def peak_bytes(self) -> int | None:
        """Memory of the device at its peak, of each of its ranks."""
        return self.memory_model.peak_bytes(self.micro_batching) if self.memory_model and self.micro_batching else None

    @property
    def amortized_seconds(self) -> float | None:
        """Its part of the time of all trials, where as many as may run at a time."""
        return self.seconds / self.placement.at_a_time if self.seconds is not None and self.placement else None

    @property
    def device_seconds(self) -> float | None:
        """The time of cards that it takes: a trial on two of them takes twice its own."""
        return self.seconds * self.placement.share if self.seconds is not None and self.placement else None

    @property
    def seconds(self) -> float | None:
        """Time in optimizer steps, roughly."""
        if not (self.memory_model and self.micro_batching and self.placement):
            return None
        return self.placement.estimate_training_seconds(self.memory_model, self.micro_batching, self.tokens, self.steps)


def plan_trial(
    config: TrialConfig, train_tokens: int, is_exact: bool = True, placement: Placement | None = None
) -> TrialPlan:
    """The plan of a trial whose train split has so many tokens."""
    tokens = min(train_tokens, config.max_train_tokens or train_tokens)
    windows = -(-tokens // (config.context_length - 1))
    steps = -(-windows // config.batch_size)
    shape = find_shape(config.model)
    if placement and shape:
        placement = placement.with_sharing(
            MemoryModel(shape, config, placement.card.device, placement.precision, placement.world_size)
        )
    return TrialPlan(config, tokens * config.epochs, steps * config.epochs, is_exact, shape, placement)


def plan_trials(configs: Sequence[TrialConfig], placement: Placement | None = None) -> list[TrialPlan | None]:
    """The plan of each trial as far as it can be made on this machine now; None where the dataset's size is unknown."""
    return [_plan_known_size(trial, placement) for trial in configs]


def _plan_known_size(config: TrialConfig, placement: Placement | None) -> TrialPlan | None:
    if config.dataset not in DATASETS and Path(config.dataset).exists():
        return plan_trial(config, _estimate_tokens(Path(config.dataset)), False, placement)
    if sizes := preparation.load_cached_sizes(config.dataset, config.model):
        return plan_trial(config, sizes["train_tokens"], True, placement)
    if config.dataset in DATASETS:
        return plan_trial(config, DATASETS[config.dataset].approx_train_tokens, False, placement)
    return None


def _estimate_tokens(path: Path) -> int:
    """Four bytes of English make a token, roughly."""
    return (path / "train.txt" if path.is_dir() else path).stat().st_size // 4


def estimate_seconds(config: TrialConfig, progress: Progress, placement: Placement) -> float | None:
    """What the steps that a trial has done should have taken, as `plan` would have said."""
    shape = find_shape(config.model)
    if shape is None:
        return None
    work = MemoryModel(shape, config, placement.card.device, placement.precision, progress.ranks)
    fit = MicroBatching(progress.micro_batch_size, progress.recompute)
    return placement.with_sharing(work).estimate_training_seconds(work, fit, progress.tokens_seen, progress.step)


# ---- all trials together ------------------------------------------------------------------------------------------


def representative_trials(sweep: Sweep) -> list[TrialConfig]:
    """Trials that stand for what a search may suggest: all choices, both ends of ranges; none of a function's."""
    if not isinstance(sweep.space, Mapping):
        return []
    named = {name: search_space.list_values(value) for name, value in sweep.space.items()}
    lists = [found if name in COST_FIELDS else found[:1] for name, found in named.items()]
    points = itertools.islice(itertools.product(*lists), MAX_REPRESENTATIVE_TRIALS)
    return [TrialConfig(**dict(zip(named, point, strict=True))) for point in points]


def summary_lines(
    sweep: Sweep,
    plans: Sequence[TrialPlan | None],
    remaining: Sequence[TrialPlan | None],
    placement: Placement | None,
    price_per_hour: float | None,
) -> list[str]:
    """What there is to say of all trials together, line by line.

    Args:
        plans: of all trials; of a search, of those that it has suggested.
        left: of those that are still to be done.
        price_per_hour: of a GPU, or of a machine without.
    """
    lines = (
        [f"{pluralize(len(plans), 'trial')}, {len(remaining)} to be done: {_format_totals(remaining)}"] if plans else []
    )
    if sweep.num_samples is not None:
        ended = f"{len(plans) - len(remaining)} ended"
        lines.append(f"a search of {pluralize(sweep.num_samples, 'trial')}, {ended}; each follows from earlier results")
    if placement is None:
        return [*lines, "no GPU that is known is here: --gpu NAME shows memory and time on one"]
    if sweep.num_samples is not None:
        lines.append(
            _format_search_time(plan_trials(representative_trials(sweep), placement), sweep, placement, price_per_hour)
        )
    elif remaining:
        lines.append(_format_time(remaining, placement, price_per_hour))
    lines.append(f"on {placement}")
    return [*lines, *LEGEND]


def _format_totals(plans: Sequence[TrialPlan | None]) -> str:
    """Tokens, steps, FLOPs and disk of these trials together."""
    known = [one for one in plans if one is not None]
    if plans and not known:
        return "how much is not known yet"
    about = "" if len(known) == len(plans) and all(one.is_exact for one in known) else "about "
    text = f"{about}{sum(one.tokens for one in known):,} tokens in {sum(one.steps for one in known):,} steps"
    flops, disk = _sum_or_none(plans, lambda one: one.flops), _sum_or_none(plans, lambda one: one.checkpoint_bytes)
    if flops is not None and disk is not None:
        text += f", {flops / 1e15:,.3g} PFLOPs, {disk / GIB:,.1f} GiB on disk"
    return text


def _format_time(plans: Sequence[TrialPlan | None], placement: Placement, price_per_hour: float | None) -> str:
    """Time of these trials together, of the cards for them, and what that costs."""
    seconds, of_cards = (
        _sum_or_none(plans, lambda one: one.amortized_seconds),
        _sum_or_none(plans, lambda one: one.device_seconds),
    )
    if seconds is None or of_cards is None:
        return "how long is not known yet"
    longest = max((one.seconds or 0.0 for one in plans if one), default=0.0)
    at_a_time = {one.placement.at_a_time for one in plans if one and one.placement}
    text = f"~{format_duration(max(longest, seconds))} of training"
    if max(at_a_time) > 1:
        text += f", {' to '.join(map(str, sorted({min(at_a_time), max(at_a_time)})))} at a time"
    return f"{text}; {_format_device_hours(of_cards, placement, price_per_hour)}"


def _format_search_time(
    plans: Sequence[TrialPlan | None], sweep: Sweep, placement: Placement, price_per_hour: float | None
) -> str:
    """Time of a search's trials by those that stand for them: each from shortest to longest, all by the mean."""
    known = [one for one in plans if one is not None and one.seconds is not None and one.placement is not None]
    if not known or len(known) < len(plans):
        return "how long its trials take is not known yet"
    samples, times = sweep.num_samples or 0, [one.seconds or 0.0 for one in known]
    shortest, longest = format_duration(min(times)), format_duration(max(times))
    each = f"~{shortest}" if shortest == longest else f"~{shortest} to ~{longest}"
    at_a_time = [min(one.placement.at_a_time, samples) for one in known if one.placement]
    total = statistics.fmean(time / number for time, number in zip(times, at_a_time, strict=True)) * samples
    of_cards = statistics.fmean(one.device_seconds or 0.0 for one in known) * samples
    text = f"each takes {each} of training, {pluralize(samples, 'trial')} of the mean length ~{format_duration(total)}"
    text += f"; {_format_device_hours(of_cards, placement, price_per_hour)}"
    return text + ("; less, where trials are stopped early" if sweep.scheduler is not None else "")


def _format_device_hours(device_seconds: float, placement: Placement, price_per_hour: float | None) -> str:
    """GPU-hours, or hours of the machine, and their price."""
    hours = device_seconds / 3600
    what = "GPU-hours" if placement.card.device == "cuda" else "hours of the machine"
    cost = "" if price_per_hour is None else f", ~{hours * price_per_hour:,.2f} at {price_per_hour:,.2f} an hour"
    return f"~{hours:,.{2 if hours < 10 else 0}f} {what}{cost}"


def _sum_or_none(plans: Sequence[TrialPlan | None], key: Callable[[TrialPlan], float | None]) -> float | None:
    """None where one is not known."""
    found = [key(one) if one is not None else None for one in plans]
    return None if None in found else sum(one for one in found if one is not None)
