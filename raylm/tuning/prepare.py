"""What the trials of a launch share, found and made once: the models' files, the datasets as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raylm.config.catalog import Shape
from raylm.config.trial import TrialConfig
from raylm.data import cache, hub
from raylm.data.corpus import Corpus
from raylm.data.corpus import prepare as data_prepare
from raylm.errors import UserError
from raylm.monitor.console import Screen
from raylm.planning.devices import Card
from raylm.planning.throughput import share
from raylm.results import sweep_record
from raylm.results.rows import FAILED, Results
from raylm.results.storage import Storage
from raylm.training import models
from raylm.training.models import ModelSource


@dataclass(frozen=True)
class Prepared:
    """All that trials need besides a device."""

    corpora: Mapping[tuple[str, str], Corpus]
    """By (dataset, model)."""
    sources: Mapping[tuple[str, bool], ModelSource]
    """By (model, pretrained)."""

    def data_used(self) -> list[dict[str, Any]]:
        """What the corpora are, for the record."""
        return [
            {
                "dataset": dataset,
                "model": model,
                "revision": corpus.revision,
                "fingerprint": corpus.fingerprint,
                "train_tokens": len(corpus.train.tokens),
                "train_words": corpus.train.words,
                "validation_tokens": len(corpus.validation.tokens),
                "validation_words": corpus.validation.words,
            }
            for (dataset, model), corpus in self.corpora.items()
        ]

    def models_used(self) -> list[dict[str, Any]]:
        """What the models are, for the record."""
        return [
            {"model": model, "pretrained": pretrained, "revision": source.revision}
            for (model, pretrained), source in self.sources.items()
        ]


def prepare(trials: Sequence[TrialConfig], found: Results, screen: Screen) -> Prepared:
    """Fetches each model and tokenises each dataset of these trials.

    Args:
        trials: what is going to run, or what stands for it.
        found: how the sweep stands, to compare data and weights with those that its rows come from.
        screen: told what takes long.

    Raises:
        UserError: if something cannot be had, or does not fit a trial.
    """
    sources: dict[tuple[str, bool], ModelSource] = {}
    corpora: dict[tuple[str, str], Corpus] = {}
    for trial in trials:
        model, spoken = (trial.model, trial.pretrained), (trial.dataset, trial.model)
        if model not in sources:
            with screen.working(f"finding model {trial.model}"):
                sources[model] = models.locate(trial.model, pretrained=trial.pretrained)
        if spoken not in corpora:
            with screen.working(f"preparing dataset {trial.dataset} for {trial.model}"):
                corpora[spoken] = data_prepare(trial.dataset, sources[model].files(), trial.model)
            if np.array_equal(corpora[spoken].train.tokens, corpora[spoken].validation.tokens):
                screen.say(f"warning: {trial.dataset} is validated on the text that it is trained on")
        _check_fit(trial, sources[model], corpora[spoken])
    prepared = Prepared(corpora, sources)
    _check_unchanged(found, prepared)
    return prepared


def _check_fit(trial: TrialConfig, source: ModelSource, corpus: Corpus) -> None:
    """A window must fit into the model, and the train split must fill at least one."""
    shape = models.shape(source)
    if shape is not None and trial.context_length > shape.positions:
        what = f"{trial.model} takes at most {shape.positions} tokens"
        raise UserError(f"context_length: got {trial.context_length}; {what}")
    tokens, needed = len(corpus.train.tokens[: trial.max_train_tokens]), trial.context_length - 1
    if tokens < needed:
        raise UserError(
            f"{trial.dataset} gives {tokens:,} tokens to train on; context_length {trial.context_length} "
            f"needs at least {needed:,} for one window"
        )


def _check_unchanged(found: Results, prepared: Prepared) -> None:
    """Rows on changed data or weights must not stand beside rows on the old.

    A model all of whose rows have failed may be another now: they may have failed because of its files.
    """
    for launch in sweep_record.launches(found.storage):
        corpora = {(one["dataset"], one["model"]): one["fingerprint"] for one in launch["data"]}
        models = {(one["model"], one["pretrained"]): one["revision"] for one in launch["models"]}
        changed = [
            f"the text or the tokenizer of {dataset} with {model}"
            for (dataset, model), corpus in prepared.corpora.items()
            if corpora.get((dataset, model), corpus.fingerprint) != corpus.fingerprint
        ]
        changed += [
            f"the files of {model}"
            for (model, pretrained), source in prepared.sources.items()
            if models.get((model, pretrained), source.revision) != source.revision
            and not _in_vain(model, pretrained, found)
        ]
        if changed:
            what = f"{' and '.join(changed)} has changed since launch {launch['number']} of this sweep"
            advice = "give the sweep another name, or choose another place with --storage"
            raise UserError(f"{what}: its rows could not be compared; {advice}")


def _in_vain(model: str, pretrained: bool, found: Results) -> bool:
    """Whether all rows of a model have failed before their first checkpoint."""
    rows = [row for row in found.rows if (row.config.model, row.config.pretrained) == (model, pretrained)]
    return bool(rows) and all(row.status == FAILED and row.latest is None for row in rows)


@dataclass(frozen=True)
class Job:
    """What all trials of a launch share."""

    folder: Storage
    """The sweep's results folder."""
    launch: str
    """The name of this launch's folder in it."""
    corpora: Mapping[tuple[str, str], Any]
    """Ray reference to the corpus of (dataset, model): each node holds one copy, which its trials share."""
    sources: Mapping[tuple[str, bool], models.ModelSource]
    """The model of (name, pretrained)."""
    shapes: Mapping[tuple[str, bool], Shape | None]
    """What its costs follow from, read where its files are: other nodes may not have them."""
    home: str
    """The node that the sources were found on."""
    carried: Mapping[tuple[str, bool], Any]
    """Ray reference to the files of those in a local folder, for the other nodes."""
    precision: str
    device: str
    """`cpu` or `cuda`."""
    ranks: int
    """Processes that train a trial."""
    gpus: float
    """Per process: one, a fraction of one, or none."""
    cards: Sequence[tuple[Card, int]]
    """GPUs that trials share where it pays, each with the number of trials that may; none where they do not."""
    threads: int
    """Per process."""
    part: float
    """A process's part of its machine's memory."""
    max_failures: int
    """Errors of a trial after which it is given up."""
    alone: bool
    """Whether trials run one at a time, because they have run out of memory before."""
    board: Any
    """Actor between the trials and the driver."""

    def share(self, trial: TrialConfig) -> float:
        """A trial's share of a GPU that it may share."""
        return share(self.cards, self.shapes[trial.model, trial.pretrained], trial, self.precision)

    def of(self, trial: TrialConfig) -> Job:
        """As it holds for one trial."""
        own = self.share(trial)
        return replace(self, gpus=self.gpus * own, part=self.part * own)


Packed = Mapping[str, npt.NDArray[np.uint8]]
"""The bytes of a model's files by name, as arrays, which Ray's object store gives to a process without a copy."""


def pack(source: ModelSource) -> Packed | None:
    """The files of a model in a local folder; None where each machine fetches it, or it has none."""
    if source.folder is None or source.hub_id is not None:
        return None
    files = hub.model_files(Path(source.folder), weights=source.weights)
    return {file.name: np.fromfile(file, np.uint8) for file in files}


def unpack(source: ModelSource, packed: Packed) -> ModelSource:
    """The model with its files in this machine's cache, written there unless another trial has done so."""

    def build(folder: Path) -> None:
        for name, content in packed.items():
            content.tofile(folder / name)

    assert source.revision is not None, "a model in a local folder has one"
    return replace(source, folder=str(cache.made("models", source.revision, build)))
