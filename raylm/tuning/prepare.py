"""Inputs shared by the trials of a launch, prepared once: model files, tokenised datasets, launch settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raylm.config.catalog import ModelShape, find_gpt2_shape
from raylm.config.dataset import CorpusKey
from raylm.config.trial import TrialConfig
from raylm.data import cache, hub, model_files, preparation
from raylm.data.corpus import Corpus
from raylm.data.model_files import ModelSource
from raylm.errors import UserError, WorkError
from raylm.events import Notify, ShowProgress
from raylm.machine import machine_memory
from raylm.numerics import windows_per_rank
from raylm.planning.devices import Device
from raylm.planning.gpu_time import min_steps_to_compile
from raylm.planning.memory import MemoryModel
from raylm.planning.throughput import gpu_fraction
from raylm.results.data_record import describe_words
from raylm.results.progress import MicroBatching
from raylm.results.rows import FAILED, SweepRows
from raylm.results.storage import Storage
from raylm.results.sweep_record import DataRecord, ModelRecord
from raylm.training.options import ExecutionOptions
from raylm.tuning.resources.capacity import compute_own_share


@dataclass(frozen=True)
class PreparedInputs:
    """Datasets and models of a launch's trials."""

    corpora: Mapping[CorpusKey, Corpus]
    sources: Mapping[tuple[str, bool], ModelSource]
    """Models by (model, pretrained)."""
    shapes: Mapping[tuple[str, bool], ModelShape | None]
    """Model shapes by (model, pretrained); None for a model whose config.json does not have the numbers."""

    def data_records(self) -> list[DataRecord]:
        """Return the corpora as they are recorded in sweep.json."""
        return [
            DataRecord(
                model=model,
                revision=corpus.revision,
                fingerprint=corpus.fingerprint,
                train_tokens=len(corpus.train.tokens),
                train_words=corpus.train.num_words,
                validation_tokens=len(corpus.validation.tokens),
                validation_words=corpus.validation.num_words,
                train_bytes=corpus.train.num_bytes or None,
                validation_bytes=corpus.validation.num_bytes or None,
                unknown_share=corpus.unknown_share,
                lossless=corpus.is_lossless,
                spaceless_percent=corpus.spaceless_percent,
                **asdict(spec),
            )
            for (spec, model), corpus in self.corpora.items()
        ]

    def model_records(self) -> list[ModelRecord]:
        """Return the models as they are recorded in sweep.json."""
        return [ModelRecord(model, pretrained, source.revision) for (model, pretrained), source in self.sources.items()]


def prepare_inputs(
    trials: Sequence[TrialConfig], results: SweepRows, notify: Notify, show_progress: ShowProgress
) -> PreparedInputs:
    """Fetch the models and tokenise the datasets of trials.

    Args:
        trials: trials that will run, or that represent those that a search may suggest.
        results: rows of the sweep; their data and weights must be those of the new trials.
        notify: shows a note to the user.
        show_progress: shows the current work to the user.

    Raises:
        UserError: if a model or dataset is not available, does not fit a trial, or changed since an earlier launch.
    """
    sources: dict[tuple[str, bool], ModelSource] = {}
    shapes: dict[tuple[str, bool], ModelShape | None] = {}
    corpora: dict[CorpusKey, Corpus] = {}
    limits, checked = _max_train_tokens(trials), set[tuple[Any, ...]]()
    for trial in trials:
        model_key, corpus_key = (trial.model, trial.pretrained), trial.corpus_key
        if model_key not in sources:
            with show_progress(f"finding model {trial.model}"):
                sources[model_key] = model_files.resolve_model(trial.model, pretrained=trial.pretrained)
                shapes[model_key] = model_files.load_shape(sources[model_key])
        if corpus_key not in corpora:
            with show_progress(f"preparing dataset {trial.dataset} for {trial.model}"):
                files, most = sources[model_key].fetch_files(), limits[corpus_key]
                corpora[corpus_key] = preparation.prepare(trial.dataset_spec, files, trial.model, max_train_tokens=most)
            _warn_about_corpus(trial, corpora[corpus_key], notify)
        vocab_size = corpora[corpus_key].vocab_size
        load_key, check_key = (*model_key, vocab_size), (*model_key, vocab_size, trial.dropout)
        if check_key not in checked and not model_files.is_known_gpt2(sources[model_key], vocab_size):
            from raylm.training import model_check  # imports transformers, which takes seconds

            # weights and causality do not depend on the dropout
            check = model_check.check_config if load_key in checked else model_check.check_model
            check(sources[model_key], vocab_size=vocab_size, dropout=trial.dropout)
            checked |= {load_key, check_key}
        _check_trial_fits(trial, shapes[model_key], corpora[corpus_key])
    prepared = PreparedInputs(corpora, sources, shapes)
    _check_inputs_unchanged(results, prepared)
    for note in dict.fromkeys(map(describe_words, prepared.data_records())):
        if note:
            notify(note)
    return prepared


def _max_train_tokens(trials: Sequence[TrialConfig]) -> dict[CorpusKey, int | None]:
    """Return the most tokens that trials use of each corpus; None: all."""
    limits: dict[CorpusKey, list[int | None]] = {}
    for trial in trials:
        limits.setdefault(trial.corpus_key, []).append(trial.max_train_tokens)
    return {
        key: max((n for n in numbers if n is not None), default=None) if None not in numbers else None
        for key, numbers in limits.items()
    }


def _warn_about_corpus(trial: TrialConfig, corpus: Corpus, notify: Notify) -> None:
    """Show what makes the numbers of a corpus other than they look."""
    if np.array_equal(corpus.train.tokens, corpus.validation.tokens):
        notify(f"warning: {trial.dataset} is validated on its training text")
    if not corpus.is_lossless:
        unknown = f"{100 * corpus.unknown_share:.2g} % of the tokens are unknown, and " if corpus.unknown_share else ""
        problem = f"{unknown}decoded, the tokens of {trial.model} give another text"
        notify(f"warning: {trial.dataset}: {problem}: adj val loss does not compare")


def _check_trial_fits(trial: TrialConfig, shape: ModelShape | None, corpus: Corpus) -> None:
    """Check that the model takes the context length, and that the train split fills at least one window.

    Raises:
        UserError: if one of these does not hold.
    """
    if shape is not None and trial.context_length > shape.max_positions:
        limit = f"{trial.model} takes at most {shape.max_positions} tokens"
        raise UserError(f"context_length: got {trial.context_length}; {limit}")
    num_tokens, needed = len(corpus.train.tokens[: trial.max_train_tokens]), trial.context_length - 1
    if num_tokens < needed:
        raise UserError(
            f"{trial.dataset} has {num_tokens:,} training tokens; context_length {trial.context_length} "
            f"needs at least {needed:,} for one window"
        )


def _check_inputs_unchanged(results: SweepRows, prepared: PreparedInputs) -> None:
    """Check that data and weights are those of earlier launches, so that all rows are comparable.

    Weights of a model may change if all its rows failed before their first checkpoint: its files may be the cause.

    Raises:
        UserError: if any has changed.
    """
    for launch in results.launches:
        fingerprints = {data.corpus_key: data.fingerprint for data in launch.data if data.fingerprint}
        revisions = {(model.model, model.pretrained): model.revision for model in launch.models}
        changed = [
            f"the text or the tokenizer of {spec} with {model}"
            for (spec, model), corpus in prepared.corpora.items()
            if fingerprints.get((spec, model), corpus.fingerprint) != corpus.fingerprint
        ]
        changed += [
            f"the files of {model}"
            for (model, pretrained), source in prepared.sources.items()
            if revisions.get((model, pretrained), source.revision) != source.revision
            and not _all_trials_failed(model, pretrained, results)
        ]
        if changed:
            subject = f"{' and '.join(changed)} changed since launch {launch.number} of this sweep"
            advice = "give the sweep another name, or use another --storage"
            raise UserError(f"{subject}: its rows would not be comparable; {advice}")


def _all_trials_failed(model: str, pretrained: bool, results: SweepRows) -> bool:
    """Return whether all rows of a model failed before their first checkpoint."""
    rows = [row for row in results.rows if (row.config.model, row.config.pretrained) == (model, pretrained)]
    return bool(rows) and all(row.status == FAILED and row.latest_checkpoint is None for row in rows)


@dataclass(frozen=True)
class LaunchContext:
    """Settings and inputs shared by all trials of a launch, sent to their processes."""

    storage: Storage
    """Results folder of the sweep."""
    launches: Sequence[str]
    """Names of the launches' folders in it, the present one last."""
    corpora: Mapping[CorpusKey, Any]
    """Ray references to corpora: each node holds one copy, which its trials share."""
    sources: Mapping[tuple[str, bool], ModelSource]
    """Models by (model, pretrained)."""
    shapes: Mapping[tuple[str, bool], ModelShape | None]
    """Model shapes by (model, pretrained), read on the driver: other nodes may lack the files."""
    driver_node_id: str
    """Node that the sources were resolved on."""
    packed_models: Mapping[tuple[str, bool], Any]
    """Ray references to the files of models in local folders, for the other nodes."""
    precision: str
    """Precision of the trials; `auto` only for GPUs of unknown type (`nodes.resolve_precision`)."""
    device: str
    """Type of the device that trials compute on: `cpu`, `cuda` or `mps`; empty until a trial's process asks torch."""
    world_size: int
    """Number of processes that train a trial."""
    gpus_per_rank: float
    """GPUs of each of these processes: 1, a fraction, or 0."""
    shareable_devices: Sequence[tuple[Device, int]]
    """GPUs that trials may share, each with the maximum number of trials; empty: trials do not share."""
    threads_per_rank: int
    """CPU threads of each process."""
    memory_fraction: float
    """Fraction of its machine's memory for each process; 0: not known before the trial has a node."""
    max_failures: int
    """Errors of a trial that are retried; one more and it has failed."""
    exclusive: bool
    """True if trials run one at a time, because they ran out of memory before."""
    coordinator: Any
    """Handle of the `Coordinator` actor."""

    @property
    def launch_name(self) -> str:
        """Name of the present launch's folder."""
        return self.launches[-1]

    def gpu_fraction(self, trial: TrialConfig) -> float:
        """Return the fraction of a GPU that a trial takes, 1 if it does not share one."""
        return gpu_fraction(self.shareable_devices, self.shapes[trial.model, trial.pretrained], trial, self.precision)

    def for_trial(self, trial: TrialConfig) -> LaunchContext:
        """Return this context in the process of a trial: with its fractions of GPU and memory, and torch's device."""
        from raylm.training.device import inspect_gpus

        fraction = self.gpu_fraction(trial)
        memory = self.memory_fraction or compute_own_share(self.threads_per_rank, self.gpus_per_rank)
        return replace(
            self,
            gpus_per_rank=self.gpus_per_rank * fraction,
            memory_fraction=memory * fraction,
            device=self.device or inspect_gpus().device,
        )

    def plan_options(self, trial: TrialConfig, precision: str, limit: MicroBatching | None) -> ExecutionOptions:
        """Return the options that fit a rank's share of this machine's device; all windows for an unknown model shape.

        Raises:
            WorkError: if a GPT-2 needs more memory than the GPU has.
        """
        from raylm.training.device import gpu_memory_bytes, name_device

        shape, on_gpu = self.shapes[trial.model, trial.pretrained], self.device != "cpu"
        if shape is None:
            whole = MicroBatching(windows_per_rank(trial.batch_size, self.world_size))
            return ExecutionOptions(self.device, precision, whole, limit)
        memory_model = MemoryModel(shape, trial, self.device, precision, self.world_size)
        total = gpu_memory_bytes(self.device) if on_gpu else machine_memory()[1]
        available = total * (self.gpus_per_rank if on_gpu else self.memory_fraction)
        chosen = memory_model.choose_micro_batching(available)
        options = ExecutionOptions(self.device, precision, chosen, limit)
        if self.device != "cuda" or find_gpt2_shape(trial.model) is None:  # the estimate of other families is rough
            return options
        if excess := memory_model.describe_excess(available):
            raise WorkError(excess)
        min_steps = min_steps_to_compile(name_device(self.device), memory_model, chosen, min(self.gpus_per_rank, 1.0))
        return replace(options, next_smaller=memory_model.next_smaller, min_steps_to_compile=min_steps)


# ---- models in local folders --------------------------------------------------------------------------------------

PackedModel = Mapping[str, npt.NDArray[np.uint8]]
"""Bytes of a model's files by name, as arrays, which Ray's object store hands to a process without a copy."""


def ship_model(source: ModelSource) -> PackedModel | None:
    """Return the files of a model in a local folder; None if each machine can fetch it, or it has no files."""
    if source.folder is None or source.hub_id is not None:
        return None
    files = hub.list_model_files(Path(source.folder), include_weights=source.pretrained)
    return {file.name: np.fromfile(file, np.uint8) for file in files}


def receive_model(source: ModelSource, packed: PackedModel) -> ModelSource:
    """Return a model with its files in this machine's cache; write them unless another trial has done so."""

    def write_files(cache_dir: Path) -> None:
        for name, content in packed.items():
            content.tofile(cache_dir / name)

    assert source.revision is not None, "a model in a local folder has a revision"
    return replace(source, folder=str(cache.get_or_build("models", source.revision, write_files)))
