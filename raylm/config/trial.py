"""The configuration of a trial and the resources it takes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from raylm.config import validation
from raylm.errors import SweepError


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One row of the table: everything that its numbers depend on, and nothing else.

    Raises:
        SweepError: naming every field that does not fit.
    """

    dataset: str = "pydocs"
    """`pydocs`, `wikitext2`, `wikitext103`, `imdb`, a hub id `owner/name[:config]`, a text file, or a folder with
    train.txt and validation.txt."""
    model: str = "gpt2-nano"
    """`gpt2-nano`, `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`, a hub id `owner/name`, or a folder."""
    context_length: int = 1024
    """Positions of a window, in tokens."""
    batch_size: int = 8
    """Windows (sequences) per optimizer step, whatever the memory of the device makes of them."""
    epochs: int = 1
    """Passes over the train split."""
    optimizer: str = "adafactor"
    """`adafactor` (absolute step, no momentum) or `adamw`."""
    learning_rate: float = 5e-5
    """Peak learning rate: with Adafactor, the root mean square of a step."""
    lr_schedule: str = "linear"
    """After the warm-up: `linear` to zero, `cosine` to zero, or `constant`."""
    warmup_ratio: float = 0.1
    """Share of the optimizer steps in which the learning rate rises from zero."""
    weight_decay: float = 0.0
    """Decoupled decay of weight matrices, per unit of learning rate."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm over all parameters; 0 switches it off."""
    dropout: float | None = None
    """Dropout probability everywhere in the model; None keeps the model's own."""
    seed: int = 0
    """Seeds the order of windows, dropout and random weights."""
    pretrained: bool = True
    """False: the model's architecture with random weights (`gpt2-nano` has no others)."""
    max_train_tokens: int | None = None
    """Only so many tokens from the start of the train split; None: all."""
    evals_per_epoch: int = 1
    """Evaluations (and checkpoints) per epoch, evenly spaced, the last at its end."""

    def __post_init__(self) -> None:
        problems = []
        for field in fields(self):
            value, problem = validation.validate_field(field.name, getattr(self, field.name))
            problems += [problem] if problem else []
            object.__setattr__(self, field.name, value)
        problems = problems or validation.check_combination(self.as_dict())
        if problems:
            raise SweepError(problems)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, in the order of their definition."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def id(self) -> str:
        """Ten hex digits that stand for this config.

        Fields that are None do not count, so that a field added later with None as its default leaves the ids of
        finished trials as they are.
        """
        named = {name: value for name, value in self.as_dict().items() if value is not None}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def run_name(self) -> str:
        """The name of this trial everywhere: table, Tune, folder. Readable in front, unique by the id behind."""
        parts = [_slug(self.dataset), _slug(self.model), f"{self.context_length}x{self.batch_size}"]
        parts += [f"lr{self.learning_rate:g}"] if self.learning_rate != type(self).learning_rate else []
        parts += [f"e{self.epochs}"] if self.epochs != type(self).epochs else []
        parts += [f"s{self.seed}"] if self.seed != type(self).seed else []
        return "-".join([*parts, self.id])

    @classmethod
    def from_record(cls, data: Mapping[str, Any]) -> TrialConfig:
        """A config that raylm wrote down before. It is not checked again: its files may be elsewhere by now."""
        config = object.__new__(cls)
        for field in fields(cls):
            object.__setattr__(config, field.name, data.get(field.name, field.default))
        return config


def _slug(name: str) -> str:
    """The last part of a path or hub id, as far as it can stand in a folder's name."""
    last = name.rstrip("/").split("/")[-1]
    return re.sub(r"[^a-z0-9.]+", "-", last.lower()).strip("-.")[:24] or "local"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one trial gets of the cluster."""

    gpus: float | Literal["auto"] | None = None
    """GPUs per trial: a fraction of one, or a whole number, all of one node; 0 for none; None: one where the cluster
    has any, else none; `auto`: as None, but trials that leave a GPU idle share one. Several train a trial together,
    each on its share of a batch's windows."""
    cpus: int = 1
    """CPU cores per trial, and its number of threads; of several GPUs each has a process, with its share of them."""

    def __post_init__(self) -> None:
        if problems := validation.check_resources(self.gpus, self.cpus):
            raise SweepError(problems)
        if self.gpus is not None and self.gpus != "auto":
            object.__setattr__(self, "gpus", float(self.gpus))
        object.__setattr__(self, "cpus", int(self.cpus))
