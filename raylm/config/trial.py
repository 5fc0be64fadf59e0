"""Configuration of a trial, and the resources that a trial gets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

from raylm.config import validation
from raylm.config.dataset import DATASET_OPTIONS, CorpusKey, DatasetSpec
from raylm.config.other_names import unknown_field, unknown_resource
from raylm.errors import Problem, SweepError

KEY_FIELDS = ("dataset", "model", "context_length", "batch_size")
"""Fields that each run name begins with, and that a formatted sweep file has even at their defaults."""
NAME_PREFIXES = {
    "learning_rate": "lr",
    "epochs": "e",
    "seed": "s",
    "optimizer": "",
    "lr_schedule": "",
    "warmup_ratio": "warmup",
    "weight_decay": "wd",
    "max_grad_norm": "clip",
    "dropout": "drop",
    "max_train_tokens": "tokens",
    "evals_per_epoch": "evals",
    "text_column": "column-",
    "documents": "",
    "train_split": "train-",
    "validation_split": "validation-",
    "max_documents": "documents",
}
"""Texts before the values of fields in run names; default: the field's name."""
MAX_PREFIX_CHARS = 80
"""Length of a run name without the id, up to which fields are added."""


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Configuration of one trial: everything that its losses depend on, and nothing else.

    Each trial is one row of the results table. Two trials with equal fields are the same trial.

    Raises:
        SweepError: If fields are invalid; lists all of them.
    """

    dataset: str = "pydocs"
    """Text to train on: `pydocs` (Python's own documentation), `wikitext2`, `wikitext103`, `imdb`, a Hub dataset
    `owner/name`, `owner/name:config` or `owner/name:config@revision`, or the path of a file, of a folder or of files
    with `*`: `.txt`, `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, also compressed, or what `save_to_disk` wrote. A
    dataset without a validation split is validated on its last tenth."""
    model: str = "gpt2-nano"
    """Model to fine-tune: `gpt2-nano` (2 layers, random weights), `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl`, a
    causal language model `owner/name` of the Hub, or a folder with `config.json`, tokenizer and weights."""
    context_length: int = 1024
    """Tokens per window (training sequence), at least 2 and at most what the model takes."""
    batch_size: int = 8
    """Windows per optimizer step, on all GPUs of the trial together. Where a batch does not fit into memory, its
    gradient is accumulated over micro-batches."""
    epochs: int = 1
    """Passes over the train split."""
    optimizer: str = "adafactor"
    """`adafactor` (absolute step size, no momentum) or `adamw`."""
    learning_rate: float = 5e-5
    """Peak learning rate. With Adafactor, the root mean square of a step."""
    lr_schedule: str = "linear"
    """Learning rate after the warm-up: `linear` or `cosine` decay to zero, or `constant`."""
    warmup_ratio: float = 0.1
    """Fraction of the optimizer steps, from 0 to 1, over which the learning rate rises linearly from zero."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices, per unit of learning rate. Biases and norms do not decay."""
    max_grad_norm: float = 1.0
    """Maximum norm of the gradient over all parameters; larger gradients are scaled down. 0 disables clipping."""
    dropout: float | None = None
    """Dropout probability everywhere in the model, at least 0 and below 1. None keeps the model's own."""
    seed: int = 0
    """Seed of the order of windows, of dropout and of random weights."""
    pretrained: bool = True
    """Start from the model's pretrained weights. False: random weights (`gpt2-nano` has no others)."""
    max_train_tokens: int | None = None
    """Number of tokens used, from the start of the train split. None: all."""
    evals_per_epoch: int = 1
    """Evaluations per epoch, evenly spaced, the last at the end of the epoch. Each saves a checkpoint."""
    text_column: str | None = None
    """Column of a table that holds the text. None: `text`, else the only column of strings."""
    documents: str | None = None
    """Documents of text files, each followed by the end-of-text token: `line`, `blank-line` (paragraphs) or `file`.
    None: a single file is one stream without documents; of several files each is a document."""
    train_split: str | None = None
    """Name of the split to train on. None: `train`."""
    validation_split: str | None = None
    """Name of the split to validate on. None: `validation`, `valid` or `dev`, else the last tenth of the train
    split."""
    max_documents: int | None = None
    """Number of documents used, from the start of the train split, of which the last tenth is validated on if there is
    no validation split. None: all."""

    def __new__(cls, *args: Any, **kwargs: Any) -> TrialConfig:
        """Report names that are no fields, with the one that is meant; Python would name the first only."""
        names = [field.name for field in fields(cls)]
        if problems := [unknown_field(name, names) for name in kwargs if name not in names]:
            raise SweepError(problems)
        return super().__new__(cls)

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
        """Return the fields by name, in the order of their definition."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def as_record(self) -> dict[str, Any]:
        """Return the fields by name as files hold them: without the parts of the dataset that are None."""
        return {n: value for n, value in self.as_dict().items() if value is not None or n not in DATASET_OPTIONS}

    @property
    def changed_fields(self) -> dict[str, Any]:
        """The fields that are not at their defaults, by name, in the order of their definition."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def key_without(self, *names: str) -> tuple[Any, ...]:
        """Return the values of all fields but these: equal for trials that differ in no other field."""
        return tuple(value for name, value in self.as_dict().items() if name not in names)

    @cached_property
    def dataset_spec(self) -> DatasetSpec:
        """The fields that decide what the text is."""
        return DatasetSpec(**{field.name: getattr(self, field.name) for field in fields(DatasetSpec)})

    @cached_property
    def corpus_key(self) -> CorpusKey:
        """The fields that decide what the tokens are."""
        return self.dataset_spec, self.model

    @cached_property
    def id(self) -> str:
        """Hash of all fields that are not None, as ten hexadecimal digits.

        A field added later with None as its default therefore does not change the ids of finished trials.
        """
        hashed = {name: value for name, value in self.as_dict().items() if value is not None}
        return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:10]

    @cached_property
    def run_name(self) -> str:
        """Name of this trial in tables, in Tune and on disk: a readable prefix, then the id, which makes it unique.

        The prefix holds dataset, model, `context_length`x`batch_size`, and each other field that is not at its
        default, as in `pydocs-gpt2-nano-64x8-lr0.001-e2-adamw-drop0.1-4621fe4c53`. Learning rate, epochs and seed are
        always there; a further field is left out if the prefix would be longer than `MAX_PREFIX_CHARS`.
        """
        keys, changed = self._name_parts()
        seed = [changed.pop("seed")] if "seed" in changed else []
        parts = [*keys, *(changed.pop(name) for name in ("learning_rate", "epochs") if name in changed)]
        for part in changed.values():
            if len("-".join([*parts, part, *seed])) <= MAX_PREFIX_CHARS:
                parts.append(part)
        return "-".join([*parts, *seed, self.id])

    @cached_property
    def folder_names(self) -> tuple[str, ...]:
        """Names of this trial's folders: the run name, and the one of versions that named fewer fields, if it differs.

        Those named learning rate, epochs and seed only.
        """
        keys, changed = self._name_parts()
        named = (changed[name] for name in ("learning_rate", "epochs", "seed") if name in changed)
        return tuple(dict.fromkeys([self.run_name, "-".join([*keys, *named, self.id])]))

    def _name_parts(self) -> tuple[list[str], dict[str, str]]:
        """Return the parts of the run name that each trial has, and those of fields that are not at their defaults."""
        keys = [_slugify(self.dataset), _slugify(self.model), f"{self.context_length}x{self.batch_size}"]
        changed = self.changed_fields.items()
        return keys, {name: _format_name_part(name, value) for name, value in changed if name not in KEY_FIELDS}

    @classmethod
    def from_record(cls, data: Mapping[str, Any]) -> TrialConfig:
        """Return a config that was saved earlier, without validating it.

        Local datasets and models may have been moved or deleted since. Missing fields get their defaults, unknown
        ones are ignored.
        """
        config = object.__new__(cls)
        for field in fields(cls):
            object.__setattr__(config, field.name, data.get(field.name, field.default))
        return config


def _format_name_part(name: str, value: Any) -> str:
    """Return a field with its value as a part of a run name."""
    if name == "pretrained":
        return "random"  # weights
    text = f"{value:g}" if isinstance(value, float) else str(value)
    prefix = NAME_PREFIXES.get(name, f"{name.replace('_', '-')}-")
    return prefix + (_slugify(text) if isinstance(value, str) else text)


def _slugify(name: str) -> str:
    """Return the last part of a path or Hub id, reduced to at most 24 characters that are safe in a folder name."""
    last = name.rstrip("/").split("/")[-1]
    return re.sub(r"[^a-z0-9.]+", "-", last.lower()).strip("-.")[:24] or "local"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """GPUs and CPU cores of each trial.

    Raises:
        SweepError: If fields are invalid; lists all of them.
    """

    gpus: float | Literal["auto"] | None = None
    """GPUs per trial. A fraction of one: trials share a GPU. A whole number: the trial is trained on that many GPUs of
    one node, which split the windows of each batch. 0: train on the CPU. None: one GPU if the cluster has any, else
    none. `auto`: as None, but trials that would leave a GPU idle share one."""
    cpus: int = 1
    """CPU cores and threads per trial. With several GPUs, each GPU's process gets an equal share."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Resources:
        """Report names that are no options, with the one that is meant; Python would name the first only."""
        names = [field.name for field in fields(cls)]
        if problems := [unknown_resource(name, names).nested_in("resources") for name in kwargs if name not in names]:
            raise SweepError(problems)
        if args:
            raise SweepError([Problem("resources", "got values without names; expected Resources(gpus=..., cpus=...)")])
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if problems := validation.check_resources(self.gpus, self.cpus):
            raise SweepError(problems)
        if self.gpus is not None and self.gpus != "auto":
            object.__setattr__(self, "gpus", float(self.gpus))
        object.__setattr__(self, "cpus", int(self.cpus))
