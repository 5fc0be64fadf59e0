"""Best checkpoints at other context lengths: what the same weights give with more context or less. No Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from raylm.config.trial import TrialConfig
from raylm.data.corpus import Corpus
from raylm.data.preparation import load_cached as data_cached
from raylm.data.preparation import prepare
from raylm.errors import UserError
from raylm.results.folder import LENGTH_EVALS_FILE, load_length_evals, open_best_checkpoint
from raylm.results.rows import DONE, Results, Row
from raylm.results.sweep_record import RECORD_FILE
from raylm.training import models
from raylm.training.device import resolve_precision
from raylm.training.validation import validation_loss


@dataclass(frozen=True)
class LengthEval:
    """The val loss of a trial's best checkpoint at a context length that it was not trained at."""

    config: TrialConfig
    context_length: int
    """In tokens."""
    val_loss: float
    """Nats per token."""


def evaluate_lengths(results: Results, context_lengths: Sequence[int]) -> Iterator[LengthEval]:
    """Evaluates each best checkpoint at other context lengths; what is known already is not computed again.

    Every value is written to the results folder before the next one begins.

    Args:
        found: the rows; only finished ones are evaluated.
        context_lengths: in tokens; one that is longer than a model takes is left out for it.

    Yields:
        Each value as it is there.

    Raises:
        UserError: if a checkpoint is damaged, or its dataset has changed since.
    """
    known = dict(load_length_evals(results.storage))
    for row in results.rows:
        if row.status != DONE or row.best_checkpoint is None:
            continue
        have = known.get(row.best_checkpoint.weights_hash, {})
        wanted = [length for length in context_lengths if length not in have and length != row.config.context_length]
        for length, loss in _evaluate_row(results, row, wanted):
            known[row.best_checkpoint.weights_hash] = have = {**have, length: loss}
            results.storage.write(LENGTH_EVALS_FILE, json.dumps(known, indent=2))
            yield LengthEval(row.config, length, loss)


def _evaluate_row(results: Results, row: Row, context_lengths: Sequence[int]) -> Iterator[tuple[int, float]]:
    if not context_lengths or row.best_checkpoint is None:
        return
    corpus = _load_corpus(results, row.config)
    with open_best_checkpoint(results, row) as folder:
        model = models.load_pretrained(folder, row.config.run_name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    longest = models.max_context_length(model)
    asked = results.launches[-1].precision if results.launches else "auto"
    kind = resolve_precision("float32" if asked == "float32" else "auto", device)  # this machine may lack bfloat16
    for length in context_lengths:
        if longest is None or length <= longest:
            yield length, validation_loss(model, corpus, length, micro_batch_size=1, precision=kind)


def _load_corpus(results: Results, config: TrialConfig) -> Corpus:
    """The corpus that a trial was trained on: from the cache by its fingerprint, else prepared again and compared."""
    used = [data for launch in results.launches for data in launch.data]
    wanted = (config.dataset, config.model)
    fingerprint = next((data.fingerprint for data in used if (data.dataset, data.model) == wanted), None)
    if fingerprint is None:
        raise UserError(
            f"{results.storage.uri_of(RECORD_FILE)} has no launch on {config.dataset} with {config.model}, so that its "
            "text cannot be compared; run the sweep again"
        )
    cached = data_cached(fingerprint)
    if cached is not None:
        return cached
    source = models.resolve_model(config.model, pretrained=False)
    corpus = prepare(config.dataset, source.fetch_files(), config.model)
    if corpus.fingerprint != fingerprint:
        raise UserError(
            f"the text or the tokenizer of {config.dataset} with {config.model} has changed since the sweep"
        )
    return corpus
