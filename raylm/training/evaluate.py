"""Best checkpoints at other context lengths: what the same weights give with more context or less. No Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from raylm.config.trial import TrialConfig
from raylm.data.corpus import Corpus, prepare
from raylm.data.corpus import cached as data_cached
from raylm.errors import UserError
from raylm.results import sweep_record
from raylm.results.folder import ELSEWHERE_FILE, best_epoch, read_elsewhere
from raylm.results.rows import DONE, Results, Row
from raylm.training import models
from raylm.training.device import resolved
from raylm.training.validation import validation_loss


@dataclass(frozen=True)
class Elsewhere:
    """The val loss of a trial's best checkpoint at a context length that it was not trained at."""

    config: TrialConfig
    context_length: int
    """In tokens."""
    val_loss: float
    """Nats per token."""


def evaluate(found: Results, context_lengths: Sequence[int]) -> Iterator[Elsewhere]:
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
    known = dict(read_elsewhere(found.storage))
    for row in found.rows:
        if row.status != DONE or row.best is None:
            continue
        have = known.get(row.best.weights, {})
        wanted = [length for length in context_lengths if length not in have and length != row.config.context_length]
        for length, loss in _losses(found, row, wanted):
            known[row.best.weights] = have = {**have, length: loss}
            found.storage.write(ELSEWHERE_FILE, json.dumps(known, indent=2))
            yield Elsewhere(row.config, length, loss)


def _losses(found: Results, row: Row, context_lengths: Sequence[int]) -> Iterator[tuple[int, float]]:
    if not context_lengths or row.best is None:
        return
    corpus = _corpus(found, row.config)
    with best_epoch(found, row) as folder:
        model = models.load_weights(folder, row.config.run_name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    longest = models.longest_context(model)
    asked = sweep_record.launches(found.storage)[-1]["precision"]
    kind = resolved("float32" if asked == "float32" else "auto", device)  # this machine may lack bfloat16
    for length in context_lengths:
        if longest is None or length <= longest:
            yield length, validation_loss(model, corpus, length, micro_batch_size=1, precision=kind)


def _corpus(found: Results, config: TrialConfig) -> Corpus:
    """The corpus that a trial was trained on: from the cache by its fingerprint, else prepared again and compared."""
    used = [one for launch in sweep_record.launches(found.storage) for one in launch["data"]]
    fingerprint = next(
        one["fingerprint"] for one in used if (one["dataset"], one["model"]) == (config.dataset, config.model)
    )
    cached = data_cached(fingerprint)
    if cached is not None:
        return cached
    source = models.locate(config.model, pretrained=False)
    corpus = prepare(config.dataset, source.files(), config.model)
    if corpus.fingerprint != fingerprint:
        raise UserError(
            f"the text or the tokenizer of {config.dataset} with {config.model} has changed since the sweep"
        )
    return corpus
