"""Plan of a sweep before it runs: tokens, steps, FLOPs, memory, disk and time. No torch, no Hub, no Ray."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from raylm.config import search_space
from raylm.config.catalog import DATASETS, ModelShape, find_gpt2_shape, find_shape
from raylm.config.dataset import DatasetSpec
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.data import local_files, preparation
from raylm.planning.memory import MemoryModel, checkpoint_bytes
from raylm.planning.throughput import Placement
from raylm.results.data_record import DataRecord, describe_data
from raylm.results.progress import MicroBatching, Progress
from raylm.results.rows import SweepRows

COST_FIELDS = ("dataset", "model", "context_length", "batch_size", "epochs", "max_train_tokens", "optimizer")
"""Fields of a config that the cost of a trial depends on."""
MAX_REPRESENTATIVE_TRIALS = 1000
"""Limit of trials that are planned for a search's space."""
BYTES_PER_TOKEN = 4
"""Bytes of English text per token, roughly."""


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

    @cached_property
    def memory_model(self) -> MemoryModel | None:
        """Model of the trial's memory; None if shape or placement are unknown."""
        if self.shape is None or self.placement is None:
            return None
        return self.placement.memory_model(self.shape, self.config)

    @cached_property
    def micro_batching(self) -> MicroBatching | None:
        """Micro-batches that fit the device; None if unknown."""
        if self.memory_model is None or self.placement is None:
            return None
        return self.memory_model.choose_micro_batching(self.placement.available_bytes)

    @cached_property
    def peak_bytes(self) -> int | None:
        """Peak memory on each of the trial's devices; None if unknown."""
        if self.memory_model is None or self.micro_batching is None:
            return None
        return self.memory_model.peak_bytes(self.micro_batching)

    @cached_property
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
    sizes = {key: _find_train_tokens(*key) for key in dict.fromkeys(config.corpus_key for config in configs)}
    return [plan_trial(config, *size, placement) if (size := sizes[config.corpus_key]) else None for config in configs]


def _find_train_tokens(spec: DatasetSpec, model: str) -> tuple[int, bool] | None:
    """Return the tokens of a dataset's train split, and True if they were counted; None if they are unknown."""
    if spec.dataset not in DATASETS and (files := local_files.find(spec)):
        return local_files.train_bytes(files) // BYTES_PER_TOKEN, False
    if sizes := preparation.load_cached_sizes(spec, model):
        return sizes["train_tokens"], True
    if spec.dataset in DATASETS:
        return DATASETS[spec.dataset].approx_train_tokens, False
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
    return shared.estimate_training_seconds(
        memory_model, micro_batching, progress.tokens_seen, progress.step, progress.total_steps
    )


def describe_excess(plans: Sequence[TrialPlan | None]) -> list[str]:
    """Return a message for each kind of trial that needs more memory than its GPU has; its rows will fail."""
    known = [(plan.memory_model, plan.placement) for plan in plans if plan]
    messages = (model.describe_excess(place.available_bytes) for model, place in known if model and place)
    return list(dict.fromkeys(message for message in messages if message))


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
