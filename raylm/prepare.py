"""What the trials of a launch share, found and made once: the models' files, the datasets as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raylm import data, models, results
from raylm.config import TrialConfig
from raylm.console import Screen
from raylm.data import Corpus
from raylm.errors import UserError
from raylm.models import ModelSource


@dataclass(frozen=True)
class Prepared:
    """Trials, and all that they need besides a device."""

    trials: Sequence[TrialConfig]
    corpora: Mapping[tuple[str, str], Corpus]
    """By (dataset, model)."""
    sources: Mapping[tuple[str, bool], ModelSource]
    """By (model, pretrained)."""


def prepare(trials: Sequence[TrialConfig], folder: Path, screen: Screen) -> Prepared:
    """Fetches each model and tokenises each dataset of these trials.

    Args:
        trials: what is going to run.
        folder: the sweep's results folder, to compare the data with that of its earlier launches.
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
                corpora[spoken] = data.prepare(trial.dataset, sources[model].files(), trial.model)
        _check_fit(trial, sources[model], corpora[spoken])
    _check_same_data(folder, corpora)
    return Prepared(trials, corpora, sources)


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


def _check_same_data(folder: Path, corpora: Mapping[tuple[str, str], Corpus]) -> None:
    """Rows on changed data must not stand beside rows on the old."""
    record = results.read_record(folder) or {"launches": []}
    for launch in record["launches"]:
        for used in launch["data"]:
            corpus = corpora.get((used["dataset"], used["model"]))
            if corpus is not None and corpus.fingerprint != used["fingerprint"]:
                raise UserError(
                    f"the text or the tokenizer of {used['dataset']} with {used['model']} has changed since launch "
                    f"{launch['number']} of this sweep: its rows could not be compared; give the sweep another name, "
                    "or choose another place with --storage"
                )
