"""Evaluation of best checkpoints at other context lengths and on test splits. Does not depend on Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from raylm.config.trial import TrialConfig
from raylm.data.corpus import Corpus
from raylm.data.preparation import load_cached, prepare
from raylm.errors import UserError
from raylm.results.folder import (
    EvaluatedLoss,
    load_length_evals,
    load_test_losses,
    open_best_checkpoint,
    write_length_evals,
    write_test_losses,
)
from raylm.results.rows import DONE, Row, SweepRows
from raylm.results.sweep_record import RECORD_FILE
from raylm.training import models
from raylm.training.device import choose_device, half_precisions, resolve_precision
from raylm.training.validation import validation_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LengthEval:
    """Val loss of a trial's best checkpoint at a context length that it was not trained at."""

    config: TrialConfig
    context_length: int
    """Length in tokens."""
    val_loss: float
    """Nats per token."""
    precision: str
    """Precision of the evaluation, `float32`, `bfloat16` or `float16`."""


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
        for evaluation in _evaluate_row(results, row, missing):
            losses[evaluation.context_length] = EvaluatedLoss(evaluation.val_loss, evaluation.precision)
            losses_by_weights[row.best_checkpoint.weights_hash] = losses
            write_length_evals(results.storage, losses_by_weights)
            yield evaluation


def evaluate_test_split(results: SweepRows, row: Row) -> EvaluatedLoss:
    """Return the loss of a row's best checkpoint on the test split of its dataset, and write it to the results folder.

    The context length is that of the training. The value is computed again if it is known, since the fingerprint of a
    dataset does not cover its test split.

    Returns:
        The loss in nats per token, with the precision of the evaluation.

    Raises:
        UserError: if the row is not finished, its checkpoint is damaged, or its dataset has changed or has no test
            split.
    """
    name = row.config.run_name
    if row.status != DONE or row.best_checkpoint is None:
        raise UserError(f"{name} is not finished ({row.status}); expected a finished row")
    corpus = _load_corpus(results, row.config, with_test=True)
    if corpus.test is None:
        raise UserError(f"dataset {row.config.dataset}: has no test split; expected a split named `test`")
    model, precision = _load_best(results, row)
    test_corpus = replace(corpus, validation=corpus.test)
    loss = validation_loss(model, test_corpus, row.config.context_length, micro_batch_size=1, precision=precision)
    test = EvaluatedLoss(loss, precision)
    write_test_losses(results.storage, {**load_test_losses(results.storage), row.best_checkpoint.weights_hash: test})
    return test


def _evaluate_row(results: SweepRows, row: Row, context_lengths: Sequence[int]) -> Iterator[LengthEval]:
    if not context_lengths or row.best_checkpoint is None:
        return
    corpus = _load_corpus(results, row.config)
    model, precision = _load_best(results, row)
    max_length = models.max_context_length(model)
    for length in context_lengths:
        if max_length is None or length <= max_length:
            loss = validation_loss(model, corpus, length, micro_batch_size=1, precision=precision)
            yield LengthEval(row.config, length, loss, precision)


def _load_best(results: SweepRows, row: Row) -> tuple[PreTrainedModel, str]:
    """Return the best checkpoint's model on this machine's device, and the precision to evaluate it in."""
    with open_best_checkpoint(results, row) as folder:
        model = models.load_pretrained(folder, row.config.run_name)
    device = choose_device()
    model.to(device)
    requested = results.launches[-1].precision if results.launches else "auto"
    is_possible = requested in ("float32", *half_precisions(device))  # of the device of this machine
    return model, resolve_precision(requested if is_possible else "auto", device)


def _load_corpus(results: SweepRows, config: TrialConfig, *, with_test: bool = False) -> Corpus:
    """Load the corpus that a trial was trained on from the cache, or prepare it again and compare fingerprints."""
    records = [data for launch in results.launches for data in launch.data]
    key = config.corpus_key
    fingerprint = next((data.fingerprint for data in records if data.corpus_key == key), None)
    if fingerprint is None:
        raise UserError(
            f"{results.storage.uri_of(RECORD_FILE)} has no launch on {config.dataset} with {config.model}, so that its "
            "text cannot be compared; run the sweep again"
        )
    cached = None if with_test else load_cached(fingerprint)  # possibly from before the dataset had a test split
    if cached is not None:
        return cached
    source = models.resolve_model(config.model, pretrained=False)
    limits = [row.config.max_train_tokens for row in results.rows if row.config.corpus_key == key]
    limit = None if None in limits else max((n for n in limits if n is not None), default=None)
    corpus = prepare(config.dataset_spec, source.fetch_files(), config.model, max_train_tokens=limit)
    if corpus.fingerprint != fingerprint:
        raise UserError(
            f"the text or the tokenizer of {config.dataset} with {config.model} has changed since the sweep"
        )
    return corpus
