"""Evaluation of best checkpoints at context lengths other than that of their training. Does not depend on Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from raylm.config.trial import TrialConfig
from raylm.data.corpus import Corpus
from raylm.data.preparation import load_cached, prepare
from raylm.errors import UserError
from raylm.results.folder import load_length_evals, open_best_checkpoint, write_length_evals
from raylm.results.rows import DONE, Row, SweepRows
from raylm.results.sweep_record import RECORD_FILE
from raylm.training import models
from raylm.training.device import resolve_precision
from raylm.training.validation import validation_loss


@dataclass(frozen=True)
class LengthEval:
    """Val loss of a trial's best checkpoint at a context length that it was not trained at."""

    config: TrialConfig
    context_length: int
    """Length in tokens."""
    val_loss: float
    """Nats per token."""


def evaluate_lengths(
    results: SweepRows, context_lengths: Sequence[int], rows: Sequence[Row] | None = None
) -> Iterator[LengthEval]:
    """Evaluate each best checkpoint at other context lengths; stored values are not computed again.

    Every value is written to the results folder before the next one is computed.

    Args:
        results: a results folder; only its finished trials are evaluated.
        context_lengths: lengths in tokens; those above the maximum of a model are skipped for it.
        rows: rows of `results` to evaluate; None: all.

    Yields:
        Each new value when it has been written.

    Raises:
        UserError: if a checkpoint is damaged, or its dataset has changed since.
    """
    losses_by_weights = dict(load_length_evals(results.storage))
    for row in results.rows if rows is None else rows:
        if row.status != DONE or row.best_checkpoint is None:
            continue
        losses = dict(losses_by_weights.get(row.best_checkpoint.weights_hash, {}))
        missing = [length for length in context_lengths if length not in losses and length != row.config.context_length]
        for length, loss in _evaluate_row(results, row, missing):
            losses[length] = loss
            losses_by_weights[row.best_checkpoint.weights_hash] = losses
            write_length_evals(results.storage, losses_by_weights)
            yield LengthEval(row.config, length, loss)


def _evaluate_row(results: SweepRows, row: Row, context_lengths: Sequence[int]) -> Iterator[tuple[int, float]]:
    if not context_lengths or row.best_checkpoint is None:
        return
    corpus = _load_corpus(results, row.config)
    with open_best_checkpoint(results, row) as folder:
        model = models.load_pretrained(folder, row.config.run_name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    max_length = models.max_context_length(model)
    requested = results.launches[-1].precision if results.launches else "auto"
    precision = resolve_precision("float32" if requested == "float32" else "auto", device)  # may lack bfloat16
    for length in context_lengths:
        if max_length is None or length <= max_length:
            yield length, validation_loss(model, corpus, length, micro_batch_size=1, precision=precision)


def _load_corpus(results: SweepRows, config: TrialConfig) -> Corpus:
    """Load the corpus that a trial was trained on from the cache, or prepare it again and compare fingerprints."""
    records = [data for launch in results.launches for data in launch.data]
    key = config.corpus_key
    fingerprint = next((data.fingerprint for data in records if data.corpus_key == key), None)
    if fingerprint is None:
        raise UserError(
            f"{results.storage.uri_of(RECORD_FILE)} has no launch on {config.dataset} with {config.model}, so that its "
            "text cannot be compared; run the sweep again"
        )
    cached = load_cached(fingerprint)
    if cached is not None:
        return cached
    source = models.resolve_model(config.model, pretrained=False)
    corpus = prepare(config.dataset_spec, source.fetch_files(), config.model)
    if corpus.fingerprint != fingerprint:
        raise UserError(
            f"the text or the tokenizer of {config.dataset} with {config.model} has changed since the sweep"
        )
    return corpus
