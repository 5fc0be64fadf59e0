"""Sizes of a tokenized dataset, as sweep.json records them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace

from raylm.config.dataset import CorpusKey, DatasetSpec

OMIT_NONE = {"omit_none": True}
"""Metadata of fields that versions before do not have (`json_files.encode`)."""

MAX_WORD_SIZE = 25
"""Bytes per word, between white space, above which a text counts as one without spaces: English has 6, Russian 12,
Chinese, Thai, DNA and base64 have dozens to thousands."""

MAX_SPACELESS_PERCENT = 50
"""Percentage of letters of scripts without spaces between words, such as Chinese, above which a text counts as one
without spaces, however short its lines are."""


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
    """Fraction of the validation split's tokens, from 0 to 1, that stand for text that the tokenizer does not know."""
    spaceless_percent: int | None = field(default=None, metadata=OMIT_NONE)
    """Percentage of the letters of the validation split that are of scripts without spaces between words."""
    text_column: str | None = field(default=None, metadata=OMIT_NONE)
    documents: str | None = field(default=None, metadata=OMIT_NONE)
    train_split: str | None = field(default=None, metadata=OMIT_NONE)
    validation_split: str | None = field(default=None, metadata=OMIT_NONE)
    max_documents: int | None = field(default=None, metadata=OMIT_NONE)

    @property
    def corpus_key(self) -> CorpusKey:
        """Dataset and model, as `TrialConfig.corpus_key`."""
        spec = DatasetSpec(**{field.name: getattr(self, field.name) for field in fields(DatasetSpec)})
        return spec, self.model


CorpusData = Mapping[CorpusKey, DataRecord]
"""Recorded sizes of the corpora."""


def index_data(records: Iterable[DataRecord]) -> dict[CorpusKey, DataRecord]:
    """Return records by their keys; of several, the known values of the later ones."""
    indexed: dict[CorpusKey, DataRecord] = {}
    for record in records:
        key = record.corpus_key
        known = {name: value for name, value in asdict(record).items() if value is not None}
        indexed[key] = replace(indexed[key], **known) if key in indexed else record
    return indexed


def bytes_factor(record: DataRecord | None) -> float | None:
    """Return tokens per byte of the validation split, which turn nats per token into nats per byte; None if unknown."""
    if record is None or record.validation_tokens is None or not record.validation_bytes:
        return None
    return record.validation_tokens / record.validation_bytes


def is_lossy(record: DataRecord | None) -> bool:
    """Return whether the tokens of a corpus are known not to give its text again."""
    return record is not None and record.lossless is False


# ---- remarks for people -------------------------------------------------------------------------------------------


def describe_words(record: DataRecord) -> str:
    """Return what a word of adj val loss is, if the validation split has few of them; empty for text with spaces."""
    words, unit, size = record.validation_words, "bytes", record.validation_bytes
    if size is None:  # at least as many bytes as tokens, in all but exotic vocabularies
        unit, size = "tokens", record.validation_tokens
    is_spaceless = (record.spaceless_percent or 0) > MAX_SPACELESS_PERCENT
    if words is None or size is None or (size <= MAX_WORD_SIZE * words and not is_spaceless):
        return ""
    found = "no word" if words == 0 else f"{words:,} word{'' if words == 1 else 's'} of {size / words:,.0f} {unit} each"
    return (
        f"adj val loss on {record.dataset} is per piece of text between white space, not per word of a language: "
        f"its validation split has {found}; compare by val loss or nats per byte instead"
    )


def describe_lossy_tokenizer(record: DataRecord) -> str:
    """Return what the tokens of a corpus lose; empty if they lose nothing, or it is not known."""
    if not is_lossy(record):
        return ""
    share = record.unknown_share or 0.0
    unknown = f"{100 * share:.2g} % of its tokens are unknown; " if share > 0 else ""
    return f"{unknown}decoded, its tokens are another text: its losses do not compare with those of other tokenizers"


def describe_data(records: Iterable[DataRecord]) -> list[str]:
    """Return notes on texts without spaces, one a dataset, and on tokenizers that lose text."""
    records = list(records)
    words = {record.dataset: note for record in records if (note := describe_words(record))}
    lossy = [
        f"{record.model} on {record.dataset}: {note}"
        for record in records
        if (note := describe_lossy_tokenizer(record))
    ]
    return [*lossy, *words.values()]


def describe_mixed_search(datasets: Iterable[str], objective: str) -> str:
    """Return a note on a search that compares rows of several datasets; empty for one dataset."""
    names = list(dict.fromkeys(datasets))
    if len(names) < 2:
        return ""
    return (
        f"the search compares rows of {', '.join(names)} with each other, by {objective}: it prefers the text that is "
        "easier to predict, whatever the model"
    )
