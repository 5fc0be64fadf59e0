"""What the trials of a launch share, found and made once: the models' files, the datasets as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raylm.config.catalog import ModelShape
from raylm.config.trial import TrialConfig
from raylm.data import cache, hub
from raylm.data.corpus import Corpus
from raylm.data.preparation import prepare as data_prepare
from raylm.errors import UserError
from raylm.monitor.console import Console
from raylm.planning.devices import Device
from raylm.planning.throughput import gpu_fraction
from raylm.results.rows import FAILED, Results
from raylm.results.storage import Storage
from raylm.results.sweep_record import DataRecord, ModelRecord
from raylm.training import models
from raylm.training.models import ModelSource


@dataclass(frozen=True)
class PreparedInputs:
    """All that trials need besides a device."""

    corpora: Mapping[tuple[str, str], Corpus]
    """By (dataset, model)."""
    sources: Mapping[tuple[str, bool], ModelSource]
    """By (model, pretrained)."""

    def data_records(self) -> list[DataRecord]:
        """Return the corpora as they are recorded in sweep.json."""
        return [
            DataRecord(
                dataset=dataset,
                model=model,
                revision=corpus.revision,
                fingerprint=corpus.fingerprint,
                train_tokens=len(corpus.train.tokens),
                train_words=corpus.train.num_words,
                validation_tokens=len(corpus.validation.tokens),
                validation_words=corpus.validation.num_words,
            )
            for (dataset, model), corpus in self.corpora.items()
        ]

    def model_records(self) -> list[ModelRecord]:
        """Return the models as they are recorded in sweep.json."""
        return [ModelRecord(model, pretrained, source.revision) for (model, pretrained), source in self.sources.items()]


def prepare_inputs(trials: Sequence[TrialConfig], existing_results: Results, console: Console) -> PreparedInputs:
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
            with console.show_spinner(f"finding model {trial.model}"):
                sources[model] = models.resolve_model(trial.model, pretrained=trial.pretrained)
        if spoken not in corpora:
            with console.show_spinner(f"preparing dataset {trial.dataset} for {trial.model}"):
                corpora[spoken] = data_prepare(trial.dataset, sources[model].fetch_files(), trial.model)
            if np.array_equal(corpora[spoken].train.tokens, corpora[spoken].validation.tokens):
                console.print_note(f"warning: {trial.dataset} is validated on the text that it is trained on")
        _check_trial_fits(trial, sources[model], corpora[spoken])
    prepared = PreparedInputs(corpora, sources)
    _check_inputs_unchanged(existing_results, prepared)
    return prepared


def _check_trial_fits(trial: TrialConfig, source: ModelSource, corpus: Corpus) -> None:
    """A window must fit into the model, and the train split must fill at least one."""
    shape = models.load_shape(source)
    if shape is not None and trial.context_length > shape.max_positions:
        what = f"{trial.model} takes at most {shape.max_positions} tokens"
        raise UserError(f"context_length: got {trial.context_length}; {what}")
    tokens, needed = len(corpus.train.tokens[: trial.max_train_tokens]), trial.context_length - 1
    if tokens < needed:
        raise UserError(
            f"{trial.dataset} gives {tokens:,} tokens to train on; context_length {trial.context_length} "
            f"needs at least {needed:,} for one window"
        )


def _check_inputs_unchanged(existing_results: Results, prepared: PreparedInputs) -> None:
    """Rows on changed data or weights must not stand beside rows on the old.

    A model all of whose rows have failed may be another now: they may have failed because of its files.
    """
    for launch in existing_results.launches:
        corpora = {(data.dataset, data.model): data.fingerprint for data in launch.data if data.fingerprint}
        models = {(model.model, model.pretrained): model.revision for model in launch.models}
        changed = [
            f"the text or the tokenizer of {dataset} with {model}"
            for (dataset, model), corpus in prepared.corpora.items()
            if corpora.get((dataset, model), corpus.fingerprint) != corpus.fingerprint
        ]
        changed += [
            f"the files of {model}"
            for (model, pretrained), source in prepared.sources.items()
            if models.get((model, pretrained), source.revision) != source.revision
            and not _all_trials_failed(model, pretrained, existing_results)
        ]
        if changed:
            what = f"{' and '.join(changed)} has changed since launch {launch.number} of this sweep"
            advice = "give the sweep another name, or choose another place with --storage"
            raise UserError(f"{what}: its rows could not be compared; {advice}")


def _all_trials_failed(model: str, pretrained: bool, existing_results: Results) -> bool:
    """Whether all rows of a model have failed before their first checkpoint."""
    rows = [row for row in existing_results.rows if (row.config.model, row.config.pretrained) == (model, pretrained)]
    return bool(rows) and all(row.status == FAILED and row.latest_checkpoint is None for row in rows)


@dataclass(frozen=True)
class LaunchContext:
    """What all trials of a launch share."""

    storage: Storage
    """The sweep's results folder."""
    launch_name: str
    """The name of this launch's folder in it."""
    corpora: Mapping[tuple[str, str], Any]
    """Ray reference to the corpus of (dataset, model): each node holds one copy, which its trials share."""
    sources: Mapping[tuple[str, bool], models.ModelSource]
    """The model of (name, pretrained)."""
    shapes: Mapping[tuple[str, bool], ModelShape | None]
    """What its costs follow from, read where its files are: other nodes may not have them."""
    driver_node_id: str
    """The node that the sources were found on."""
    packed_models: Mapping[tuple[str, bool], Any]
    """Ray reference to the files of those in a local folder, for the other nodes."""
    precision: str
    device: str
    """`cpu` or `cuda`."""
    world_size: int
    """Processes that train a trial."""
    gpus_per_rank: float
    """Per process: one, a fraction of one, or none."""
    shareable_devices: Sequence[tuple[Device, int]]
    """GPUs that trials share where it pays, each with the number of trials that may; none where they do not."""
    threads_per_rank: int
    """Per process."""
    memory_fraction: float
    """A process's part of its machine's memory."""
    max_failures: int
    """Errors of a trial after which it is given up."""
    exclusive: bool
    """Whether trials run one at a time, because they have run out of memory before."""
    coordinator: Any
    """Actor between the trials and the driver."""

    def gpu_fraction(self, trial: TrialConfig) -> float:
        """A trial's share of a GPU that it may share."""
        return gpu_fraction(self.shareable_devices, self.shapes[trial.model, trial.pretrained], trial, self.precision)

    def for_trial(self, trial: TrialConfig) -> LaunchContext:
        """As it holds for one trial."""
        own = self.gpu_fraction(trial)
        return replace(self, gpus_per_rank=self.gpus_per_rank * own, memory_fraction=self.memory_fraction * own)


PackedModel = Mapping[str, npt.NDArray[np.uint8]]
"""The bytes of a model's files by name, as arrays, which Ray's object store gives to a process without a copy."""


def ship_model(source: ModelSource) -> PackedModel | None:
    """The files of a model in a local folder; None where each machine fetches it, or it has none."""
    if source.folder is None or source.hub_id is not None:
        return None
    files = hub.list_model_files(Path(source.folder), include_weights=source.pretrained)
    return {file.name: np.fromfile(file, np.uint8) for file in files}


def receive_model(source: ModelSource, packed: PackedModel) -> ModelSource:
    """The model with its files in this machine's cache, written there unless another trial has done so."""

    def write_files(cache_dir: Path) -> None:
        for name, content in packed.items():
            content.tofile(cache_dir / name)

    assert source.revision is not None, "a model in a local folder has one"
    return replace(source, folder=str(cache.get_or_build("models", source.revision, write_files)))
