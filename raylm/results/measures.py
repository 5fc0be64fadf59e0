"""Measures: the loss that rows are ranked by, one that compares the tokenizers among them.

Val loss, per token, compares rows of one tokenizer. Nats per byte of the original text compare any tokenizers, in any
language. Nats per word (adj val loss) rank the rows of results folders that were written before bytes were recorded.
A tokenizer that loses a part of its text has no loss that compares with another's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from raylm.config.dataset import CorpusKey
from raylm.config.trial import TrialConfig
from raylm.results.data_record import CorpusData, DataRecord, bytes_factor, is_lossy
from raylm.results.progress import EvalMetrics

VAL_LOSS, NATS_PER_BYTE, ADJ_VAL_LOSS = "val loss", "nats per byte", "adj val loss"
"""Names of the measures: per token, per byte and per word of the original text."""
MEASURES = (VAL_LOSS, NATS_PER_BYTE, ADJ_VAL_LOSS)


@dataclass(frozen=True)
class Measure:
    """Loss that rows are ranked by; lower is better."""

    name: str = ADJ_VAL_LOSS
    """One of `MEASURES`."""
    reason: str = ""
    """Reason for this measure, as in `best by NAME, REASON`."""
    factors: Mapping[CorpusKey, float] = field(default_factory=dict)
    """Tokens per byte of the validation split of each corpus; empty for other measures."""
    excluded: frozenset[CorpusKey] = frozenset()
    """Corpora whose losses do not compare with those of the others."""

    def compares(self, config: TrialConfig) -> bool:
        """Return whether a trial's loss compares with those of the others."""
        return config.corpus_key not in self.excluded

    def compute(self, config: TrialConfig, metrics: EvalMetrics) -> float:
        """Return the measure of an evaluation of a trial, in nats."""
        return self.convert(config, metrics.val_loss, metrics.adj_val_loss)

    def convert(self, config: TrialConfig, val_loss: float, adj_val_loss: float) -> float:
        """Return the measure of a trial's losses, in nats."""
        if self.name == NATS_PER_BYTE:
            return val_loss * self.factors[config.corpus_key]
        return val_loss if self.name == VAL_LOSS else adj_val_loss

    def format(self, value: float) -> str:
        """Return a value or a difference of values; bytes are smaller than tokens and need a digit more."""
        return f"{value:.{4 if self.name == NATS_PER_BYTE else 3}f}"


def perplexity(loss: float) -> float | None:
    """Return the perplexity, e^loss, of a loss in nats; None if it is above the largest float."""
    return math.exp(loss) if loss < math.log(sys.float_info.max) else None


PER_WORD = Measure()
"""Measure of results folders without recorded bytes."""


def choose_measure(keys: Iterable[CorpusKey], data: CorpusData) -> Measure:
    """Return the measure for trials on these corpora, if they are ranked together.

    Val loss if one tokenizer is used on one dataset, else nats per byte; adj val loss if bytes are not recorded.
    Tokenizers that lose text are excluded if there are others.
    """
    records = {key: data.get(key) for key in keys}
    lossy = frozenset(key for key, record in records.items() if is_lossy(record))
    excluded = lossy if _count_corpora(records) > 1 else frozenset()
    compared = {key: record for key, record in records.items() if key not in excluded}
    factors = _bytes_factors(compared)
    if not compared or len(factors) < len(compared):
        return Measure(ADJ_VAL_LOSS, excluded=excluded)
    if _count_corpora(compared) == 1:
        return Measure(VAL_LOSS, excluded=excluded)
    return Measure(NATS_PER_BYTE, _find_difference(compared), factors, excluded)


def restore_measure(name: str, keys: Iterable[CorpusKey], data: CorpusData) -> Measure:
    """Return the measure with the name that an earlier launch has recorded.

    It is kept, since the trials that a search has suggested so far follow from it.
    """
    factors = _bytes_factors(data) if name == NATS_PER_BYTE else {}
    return replace(choose_measure(keys, data), name=name, factors=factors)


def _bytes_factors(records: Mapping[CorpusKey, DataRecord | None]) -> dict[CorpusKey, float]:
    """Return the factors that are known."""
    return {key: factor for key, record in records.items() if (factor := bytes_factor(record)) is not None}


def _find_difference(records: Mapping[CorpusKey, DataRecord | None]) -> str:
    """Return the reason why val loss does not compare different corpora."""
    if len({spec.dataset for spec, _ in records}) > 1:
        return "as datasets differ"
    texts = {(record.validation_bytes, record.validation_words) for record in records.values() if record}
    if len(texts) > 1:
        return "as validation texts differ, so that rows compare only roughly"
    return "as tokenizers differ" if len({model for _, model in records}) > 1 else "as training texts differ"


def _count_corpora(records: Mapping[CorpusKey, DataRecord | None]) -> int:
    """Return the number of different corpora; models with one tokenizer share them, as their fingerprints show."""
    return len({record.fingerprint if record and record.fingerprint else key for key, record in records.items()})
