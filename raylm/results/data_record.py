"""Sizes of a tokenized dataset, as sweep.json records them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace

OMIT_NONE = {"omit_none": True}
"""Metadata of fields that versions before do not have (`json_files.encode`)."""


@dataclass(frozen=True)
class DataRecord:
    """Tokenized dataset that trials of a launch used."""

    dataset: str
    model: str
    """Model whose tokenizer was used."""
    revision: str | None = None
    """Commit on the hub, or a hash of local files."""
    fingerprint: str | None = None
    """Hash of text and tokenizer."""
    train_tokens: int | None = None
    train_words: int | None = None
    validation_tokens: int | None = None
    validation_words: int | None = None
    train_bytes: int | None = field(default=None, metadata=OMIT_NONE)
    """Bytes of the original text in UTF-8; None if it was not recorded, as in versions before."""
    validation_bytes: int | None = field(default=None, metadata=OMIT_NONE)
    lossless: bool | None = field(default=None, metadata=OMIT_NONE)
    """True if the tokens, decoded, are the text again; None if it was not recorded."""
    unknown_share: float | None = field(default=None, metadata=OMIT_NONE)
    """Fraction of the tokens that are the unknown token."""


CorpusKey = tuple[str, str]
"""Dataset and model: the text and the tokenizer of a row."""
CorpusData = Mapping[CorpusKey, DataRecord]
"""Recorded sizes of the corpora."""


def index_data(records: Iterable[DataRecord]) -> dict[CorpusKey, DataRecord]:
    """Return records by their keys; of several, the known values of the later ones."""
    indexed: dict[CorpusKey, DataRecord] = {}
    for record in records:
        key = record.dataset, record.model
        known = {name: value for name, value in asdict(record).items() if value is not None}
        indexed[key] = replace(indexed[key], **known) if key in indexed else record
    return indexed


def bytes_factor(record: DataRecord | None) -> float | None:
    """Return tokens per byte of the validation split, which turn nats per token into nats per byte; None if unknown.

    A split without a byte counts as one of one byte.
    """
    if record is None or record.validation_tokens is None or record.validation_bytes is None:
        return None
    return record.validation_tokens / max(1, record.validation_bytes)


def is_lossy(record: DataRecord | None) -> bool:
    """Return whether the tokens of a corpus are known not to give its text again."""
    return record is not None and record.lossless is False
