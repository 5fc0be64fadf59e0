"""Plan of a sweep before it runs: tokens, steps, FLOPs, memory, disk and time. No torch, no Hub, no Ray."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from raylm.config import search_space
from raylm.config.catalog import DATASETS, ModelShape, find_gpt2_shape, find_shape
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.data import local_files, preparation
from raylm.planning.memory import MemoryModel, checkpoint_bytes
from raylm.planning.throughput import Placement
from raylm.results.data_record import DataRecord, describe_data
from raylm.results.progress import MicroBatching, Progress
from raylm.results.rows import SweepRows
from raylm.units import GIB, format_duration, pluralize

COST_FIELDS = ("dataset", "model", "context_length", "batch_size", "epochs", "max_train_tokens", "optimizer")
"""Fields of a config that the cost of a trial depends on."""
MAX_REPRESENTATIVE_TRIALS = 1000
"""Limit of trials that are planned for a search's space."""
BYTES_PER_TOKEN = 4
"""Bytes of English text per token, roughly."""
LEGEND = (
    "micro: windows at a time, r with recomputed activations; GiB: peak memory of the device; disk: GiB",
    "~ estimated; ? not known before model and dataset are fetched",
)


@dataclass(frozen=True)
class TrialPlan:
    """Cost of one trial."""

    config: TrialConfig
    tokens: int
    """Number of tokens predicted in training, over all epochs."""
    steps: int
    """Number of optimizer steps."""
    is_exact: bool
    """True if the dataset's tokens were counted, False if they are estimated."""
    shape: ModelShape | None
    """Shape of the model; None if it is unknown before the model is fetched."""
    placement: Placement | None = None
    """Devices of the trial; None if they are unknown."""

    @property
    def flops(self) -> float | None:
        """FLOPs of training, without the second forward pass of recomputed activations; None if unknown."""
        if self.shape is None:
            return None
        return self.tokens * self.shape.training_flops_per_token(self.config.context_length)

    @property
    def checkpoint_bytes(self) -> int | None:
        """Disk space of the trial's best and latest checkpoint; None if unknown."""
        return estimate_checkpoint_bytes(self.config, self.shape) if self.shape else None

    @property
    def memory_model(self) -> MemoryModel | None:
        """Model of the trial's memory; None if shape or placement are unknown."""
        if self.shape is None or self.placement is None:
            return None
        return self.placement.memory_model(self.shape, self.config)

    @property
    def micro_batching(self) -> MicroBatching | None:
        """Micro-batches that fit the device; None if unknown."""
        if self.memory_model is None or self.placement is None:
            return None
        return self.memory_model.choose_micro_batching(self.placement.available_bytes)

    @property
    def peak_bytes(self) -> int | None:
        """Peak memory on each of the trial's devices; None if unknown."""
        if self.memory_model is None or self.micro_batching is None:
            return None
        return self.memory_model.peak_bytes(self.micro_batching)

    @property
    def seconds(self) -> float | None:
        """Estimated time of the optimizer steps; None if unknown."""
        if self.memory_model is None or self.micro_batching is None or self.placement is None:
            return None
        return self.placement.estimate_training_seconds(self.memory_model, self.micro_batching, self.tokens, self.steps)

    @property
    def amortized_seconds(self) -> float | None:
        """Time divided by the number of concurrent trials; None if unknown."""
        if self.seconds is None or self.placement is None:
            return None
        return self.seconds / self.placement.concurrent_trials

    @property
    def device_seconds(self) -> float | None:
        """Time multiplied by the number of devices of the trial; None if unknown."""
        if self.seconds is None or self.placement is None:
            return None
        return self.seconds * self.placement.devices_per_trial


def estimate_checkpoint_bytes(config: TrialConfig, shape: ModelShape | None = None) -> int | None:
    """Return the disk space of a trial's best and latest checkpoint; None if the model's shape is unknown."""
    shape = shape or find_shape(config.model)
    if shape is None:
        return None
    return checkpoint_bytes(shape, config.optimizer) * min(2, config.epochs * config.evals_per_epoch)


def plan_trial(
    config: TrialConfig, train_tokens: int, is_exact: bool = True, placement: Placement | None = None
) -> TrialPlan:
    """Return the plan of a trial.

    Args:
        config: the trial.
        train_tokens: number of tokens of the dataset's train split.
        is_exact: True if the tokens were counted, False if they are estimated.
        placement: devices of the trial, if known.
    """
    tokens = min(train_tokens, config.max_train_tokens or train_tokens)
    windows = -(-tokens // (config.context_length - 1))
    steps = -(-windows // config.batch_size)
    shape = find_gpt2_shape(config.model)
    if placement and shape:
        placement = placement.with_sharing(placement.memory_model(shape, config))
    return TrialPlan(config, tokens * config.epochs, steps * config.epochs, is_exact, shape, placement)


def plan_trials(configs: Sequence[TrialConfig], placement: Placement | None = None) -> list[TrialPlan | None]:
    """Return the plan of each trial from what this machine knows; None if the dataset's size is unknown."""
    return [_plan_known_size(config, placement) for config in configs]


def _plan_known_size(config: TrialConfig, placement: Placement | None) -> TrialPlan | None:
    if config.dataset not in DATASETS and (files := local_files.find(config.dataset_spec)):
        return plan_trial(config, local_files.train_bytes(files) // BYTES_PER_TOKEN, False, placement)
    if sizes := preparation.load_cached_sizes(config.dataset_spec, config.model):
        return plan_trial(config, sizes["train_tokens"], True, placement)
    if config.dataset in DATASETS:
        return plan_trial(config, DATASETS[config.dataset].approx_train_tokens, False, placement)
    return None


def describe_prepared_data(configs: Sequence[TrialConfig]) -> list[str]:
    """Return notes on corpora that are prepared on this machine: texts without spaces, tokenizers that lose text."""
    records, names = [], {field.name for field in fields(DataRecord)}
    for spec, model in dict.fromkeys(config.corpus_key for config in configs):
        sizes = preparation.load_cached_sizes(spec, model) or {}
        known: dict[str, Any] = {name: value for name, value in sizes.items() if name in names}
        known |= {"lossless": bool(sizes["is_lossless"])} if "is_lossless" in sizes else {}
        records.append(DataRecord(model=model, **asdict(spec), **known))
    return describe_data(records)


def estimate_seconds(config: TrialConfig, progress: Progress, placement: Placement) -> float | None:
    """Return the time that `raylm plan` estimates for the steps a trial has done; None if the shape is unknown."""
    shape = find_gpt2_shape(config.model)
    if shape is None:
        return None
    memory_model = MemoryModel(shape, config, placement.device.type, placement.precision, progress.ranks)
    micro_batching = MicroBatching(progress.micro_batch_size, progress.recompute)
    shared = placement.with_sharing(memory_model)
    return shared.estimate_training_seconds(memory_model, micro_batching, progress.tokens_seen, progress.step)


# ---- all trials together ------------------------------------------------------------------------------------------


def representative_trials(sweep: Sweep) -> list[TrialConfig]:
    """Return trials that span a search's space: all choices and both ends of ranges; none if it is a function."""
    if sweep.search is None or not isinstance(sweep.space, Mapping):
        return []
    values = {name: search_space.list_values(value) for name, value in sweep.space.items()}
    axes = [options if name in COST_FIELDS else options[:1] for name, options in values.items()]
    points = itertools.islice(itertools.product(*axes), MAX_REPRESENTATIVE_TRIALS)
    return [TrialConfig(**dict(zip(values, point, strict=True))) for point in points]


def planned_trials(sweep: Sweep, results: SweepRows) -> list[TrialConfig]:
    """Return the trials of the rows, and those that span what a search may still suggest."""
    return [*(row.config for row in results.rows), *representative_trials(sweep)]


def summary_lines(
    sweep: Sweep,
    plans: Sequence[TrialPlan | None],
    remaining: Sequence[TrialPlan | None],
    placement: Placement | None,
    price_per_hour: float | None,
) -> list[str]:
    """Return the lines below the table of a plan.

    Args:
        sweep: the sweep.
        plans: plans of all trials; of a search, of those suggested so far.
        remaining: plans of unfinished trials.
        placement: devices of a trial; None if they are unknown.
        price_per_hour: price of a GPU, or of a machine without one, per hour.
    """
    lines = []
    if plans:
        lines.append(f"{pluralize(len(plans), 'trial')}, {len(remaining)} remaining: {_format_totals(remaining)}")
    if sweep.num_samples is not None:
        finished = f"{len(plans) - len(remaining)} finished"
        trials = pluralize(sweep.num_samples, "trial")
        lines.append(f"search of {trials}, {finished}; each is suggested from earlier results")
    if placement is None:
        return [*lines, "no known GPU for these trials in this machine: --gpu NAME shows memory and time on one"]
    if sweep.num_samples is not None:
        representative = plan_trials(representative_trials(sweep), placement)
        lines.append(_format_search_time(representative, sweep, placement, price_per_hour))
    elif remaining:
        lines.append(_format_time(remaining, placement, price_per_hour))
    return [*lines, f"on {placement}", *(LEGEND if plans else [])]


def _format_totals(plans: Sequence[TrialPlan | None]) -> str:
    """Return the tokens, steps, FLOPs and disk space of these trials together."""
    known = [plan for plan in plans if plan is not None]
    if plans and not known:
        return "the amount of work is not known yet"
    about = "" if len(known) == len(plans) and all(plan.is_exact for plan in known) else "about "
    text = f"{about}{sum(plan.tokens for plan in known):,} tokens in {sum(plan.steps for plan in known):,} steps"
    flops = _sum_or_none(plans, lambda plan: plan.flops)
    disk_bytes = _sum_or_none(plans, lambda plan: plan.checkpoint_bytes)
    if flops is not None and disk_bytes is not None:
        text += f", {flops / 1e15:,.3g} PFLOPs, {disk_bytes / GIB:,.1f} GiB on disk"
    return text


def _format_time(plans: Sequence[TrialPlan | None], placement: Placement, price_per_hour: float | None) -> str:
    """Return the time of these trials together, their device-hours and the price."""
    seconds = _sum_or_none(plans, lambda plan: plan.amortized_seconds)
    device_seconds = _sum_or_none(plans, lambda plan: plan.device_seconds)
    if seconds is None or device_seconds is None:
        return "the time is not known yet"
    longest = max((plan.seconds or 0.0 for plan in plans if plan), default=0.0)
    text = f"~{format_duration(max(longest, seconds))} of training"
    concurrent = {plan.placement.concurrent_trials for plan in plans if plan and plan.placement}
    if max(concurrent) > 1:
        text += f", {' to '.join(map(str, sorted({min(concurrent), max(concurrent)})))} at a time"
    return f"{text}; {_format_device_hours(device_seconds, placement, price_per_hour)}"


def _format_search_time(
    plans: Sequence[TrialPlan | None], sweep: Sweep, placement: Placement, price_per_hour: float | None
) -> str:
    """Return the time of a search: the range of its representative trials, and their mean times its samples."""
    known = [plan for plan in plans if plan is not None and plan.seconds is not None and plan.placement is not None]
    if not known or len(known) < len(plans):
        return "the time of its trials is not known yet"
    samples, times = sweep.num_samples or 0, [plan.seconds or 0.0 for plan in known]
    shortest, longest = format_duration(min(times)), format_duration(max(times))
    each = f"~{shortest}" if shortest == longest else f"~{shortest} to ~{longest}"
    concurrent = [min(plan.placement.concurrent_trials, samples) for plan in known if plan.placement]
    total = statistics.fmean(time / number for time, number in zip(times, concurrent, strict=True)) * samples
    device_seconds = statistics.fmean(plan.device_seconds or 0.0 for plan in known) * samples
    text = (
        f"training takes {each} per trial, ~{format_duration(total)} for {pluralize(samples, 'trial')} of mean length"
    )
    text += f"; {_format_device_hours(device_seconds, placement, price_per_hour)}"
    return text + ("; less if trials are stopped early" if sweep.scheduler is not None else "")


def _format_device_hours(device_seconds: float, placement: Placement, price_per_hour: float | None) -> str:
    """Return GPU-hours or machine-hours, and their price."""
    hours = device_seconds / 3600
    unit = "GPU-hours" if placement.device.type == "cuda" else "machine-hours"
    cost = "" if price_per_hour is None else f", ~{hours * price_per_hour:,.2f} at {price_per_hour:,.2f} per hour"
    return f"~{hours:,.{2 if hours < 10 else 0}f} {unit}{cost}"


def _sum_or_none(plans: Sequence[TrialPlan | None], key: Callable[[TrialPlan], float | None]) -> float | None:
    """Return the sum over all plans, or None if any value is unknown."""
    values = [key(plan) if plan is not None else None for plan in plans]
    return None if None in values else sum(value for value in values if value is not None)


def format_work(trials: Sequence[TrialConfig], train_tokens: Sequence[int]) -> str:
    """Return the training work of trials as one line.

    Args:
        trials: trials that will run.
        train_tokens: size of each one's train split, in tokens.
    """
    planned = [plan_trial(trial, size) for trial, size in zip(trials, train_tokens, strict=True)]
    tokens, steps = sum(trial.tokens for trial in planned), sum(trial.steps for trial in planned)
    return f"to train on: {tokens:,} tokens in {steps:,} optimizer steps"
