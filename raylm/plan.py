"""What a sweep will cost, before it runs: tokens, steps, FLOPs, memory, disk. No torch, no hub, no Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raylm import data, memory
from raylm.catalog import DATASETS, MODELS, Shape
from raylm.config import TrialConfig


@dataclass(frozen=True)
class TrialPlan:
    """What one trial costs."""

    config: TrialConfig
    tokens: int
    """Predicted in training, over all epochs."""
    steps: int
    """Optimizer steps."""
    exact: bool
    """Whether the dataset's size is counted; else it is about right."""
    shape: Shape | None
    """None where it is not known before the model is fetched."""

    @property
    def flops(self) -> float | None:
        """FLOPs of training."""
        if self.shape is None:
            return None
        return self.tokens * self.shape.training_flops_per_token(self.config.context_length)

    @property
    def checkpoint_bytes(self) -> int | None:
        """Disk for the best and the latest checkpoint: float32 weights, and AdamW's two moments."""
        if self.shape is None:
            return None
        one = self.shape.parameters * (4 + memory.OPTIMIZER_BYTES[self.config.optimizer])
        return one * min(2, self.config.epochs * self.config.evals_per_epoch)

    def device_bytes(self, micro_batch_size: int, precision: str) -> int | None:
        """Memory of the device at its peak."""
        if self.shape is None:
            return None
        config = self.config
        return memory.training_bytes(self.shape, config.context_length, micro_batch_size, precision, config.optimizer)


def plan_trial(config: TrialConfig, train_tokens: int, exact: bool = True) -> TrialPlan:
    """The plan of a trial whose train split has so many tokens."""
    tokens = min(train_tokens, config.max_train_tokens or train_tokens)
    windows = -(-tokens // (config.context_length - 1))
    steps = -(-windows // config.batch_size)
    return TrialPlan(config, tokens * config.epochs, steps * config.epochs, exact, shape_known(config.model))


def plan(trials: Sequence[TrialConfig]) -> list[TrialPlan | None]:
    """The plan of each trial as far as it can be made on this machine now; None where the dataset's size is unknown."""
    return [_planned(trial) for trial in trials]


def _planned(config: TrialConfig) -> TrialPlan | None:
    if config.dataset not in DATASETS and Path(config.dataset).exists():
        return plan_trial(config, _about_tokens(Path(config.dataset)), exact=False)
    if sizes := data.known_sizes(config.dataset, config.model):
        return plan_trial(config, sizes["train_tokens"])
    if config.dataset in DATASETS:
        return plan_trial(config, DATASETS[config.dataset].about_train_tokens, exact=False)
    return None


def _about_tokens(path: Path) -> int:
    """Four bytes of English make a token, roughly."""
    return (path / "train.txt" if path.is_dir() else path).stat().st_size // 4


def shape_known(model: str) -> Shape | None:
    """The shape of a named model or of one in a local folder."""
    if model in MODELS:
        return MODELS[model].shape
    file = Path(model, "config.json")
    return Shape.of(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None
