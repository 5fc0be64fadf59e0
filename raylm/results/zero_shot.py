"""Losses of models before fine-tuning (zero-shot), each computed once per model, dataset and context length.

Each is a file of the folder `zero-shot` in the results folder, so that trials write theirs independently of each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from raylm.config.catalog import MODELS
from raylm.config.dataset import DATASET_OPTIONS
from raylm.config.trial import TrialConfig
from raylm.results import json_files
from raylm.results.storage import Storage

FOLDER = "zero-shot"
START_FIELDS = ("dataset", "model", "pretrained", "context_length", *DATASET_OPTIONS)
"""Fields of a trial that its loss before fine-tuning depends on; of random weights also the seed."""


@dataclass(frozen=True)
class ZeroShotLoss:
    """Loss of a model on a validation split before fine-tuning."""

    fields: dict[str, Any]
    """Fields of the trials that it belongs to."""
    val_loss: float
    """Nats per token."""
    precision: str
    """Precision of the evaluation, `float32`, `bfloat16` or `float16`."""


def zero_shot_key(trial: TrialConfig) -> str:
    """Return the name of the loss that a trial starts from: equal for trials that start from the same one."""
    return hashlib.sha256(json.dumps(_key_fields(trial), sort_keys=True).encode()).hexdigest()[:10]


def _key_fields(trial: TrialConfig) -> dict[str, Any]:
    known = MODELS.get(trial.model)
    is_random = not trial.pretrained or (known is not None and known.hub_id is None)
    names = {*START_FIELDS, "seed"} if is_random else {*START_FIELDS}
    return {name: value for name, value in trial.as_record().items() if name in names}


def load_zero_shot(storage: Storage, trial: TrialConfig) -> ZeroShotLoss | None:
    """Return the recorded loss that a trial starts from; None if there is none or its file is damaged."""
    return json_files.load_or_none(storage, _file(zero_shot_key(trial)), ZeroShotLoss)


def load_losses(storage: Storage, entries: Iterable[str]) -> dict[str, ZeroShotLoss]:
    """Return the recorded losses by key; a damaged file counts as missing.

    Args:
        storage: results folder.
        entries: names of its files and folders.
    """
    keys = [name.removeprefix(f"{FOLDER}/").removesuffix(".json") for name in entries if name.startswith(f"{FOLDER}/")]
    recorded = storage.map_reads(lambda key: json_files.load_or_none(storage, _file(key), ZeroShotLoss), keys)
    return {key: loss for key, loss in zip(keys, recorded, strict=True) if loss is not None}


def write_zero_shot(storage: Storage, trial: TrialConfig, val_loss: float, precision: str) -> None:
    """Record the loss that a trial starts from."""
    record = ZeroShotLoss(_key_fields(trial), val_loss, precision)
    storage.write(_file(zero_shot_key(trial)), json_files.encode(record))


def _file(key: str) -> str:
    return f"{FOLDER}/{key}.json"
