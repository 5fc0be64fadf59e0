"""A corpus as token arrays: tokenised once, cached under its fingerprint, cut into windows.

B is the batch, T the context length, N the tokens of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raylm.config.catalog import DATASETS, MODELS
from raylm.data import cache, tokenizer
from raylm.data.sources import CLEANING_VERSION, Source, TextSplit, read_splits, resolve_source
from raylm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


FORMAT_VERSION = "2"
"""Changes whenever the files of the cache mean something else."""
IGNORE_INDEX = -100
"""A target that counts for nothing: what fills the last, shorter window of a split."""
PIECES_PER_BATCH = 1_000

Tokens = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class TokenSplit:
    """A split as one stream of tokens."""

    tokens: Tokens
    """(N,), the smallest unsigned integers that hold the vocabulary."""
    num_words: int
    """Words of the original text."""


@dataclass(frozen=True)
class Corpus:
    """A dataset in the tokens of one tokenizer, and that tokenizer's files."""

    dataset: str
    """As a sweep names it."""
    revision: str
    """The commit of the hub's repository, or a hash of the local text."""
    fingerprint: str
    """Stands for the text, its cleaning and the tokenizer."""
    train: TokenSplit
    """What is trained on."""
    validation: TokenSplit
    """What is evaluated on."""
    eos_token_id: int
    """Token that starts a window and ends a document."""
    vocab_size: int
    """Number of different tokens."""
    tokenizer_files: dict[str, bytes]

    def splits(self) -> list[tuple[str, TokenSplit]]:
        """Both splits by their names."""
        return [("train", self.train), ("validation", self.validation)]


@dataclass(frozen=True)
class Windows:
    """A stream of N tokens as windows of T positions, in which every token is predicted exactly once.

    A window is the end-of-text token and then the next T - 1 tokens of the stream; the last one may be shorter.
    """

    tokens: Tokens
    context_length: int
    eos_token_id: int

    def __len__(self) -> int:
        return -(-len(self.tokens) // (self.context_length - 1))

    def count_tokens(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> int:
        """How many tokens are predicted in the windows with these numbers."""
        stride = self.context_length - 1
        return sum(min(stride, len(self.tokens) - int(i) * stride) for i in indices)

    def get_batch(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> tuple[npt.NDArray[np.int64], ...]:
        """The windows with these numbers.

        Returns:
            Inputs and targets, (B, T) each; T is less where the only windows asked for are shorter. The target of a
            position is the next position's input; the last position, and what fills a shorter window, has none.
            For no windows, a window of one position, which has none.
        """
        stride = self.context_length - 1
        rows = [self.tokens[i * stride : (i + 1) * stride] for i in indices]
        shape = (max(1, len(rows)), max(map(len, rows), default=0) + 1)
        inputs_BT = np.full(shape, self.eos_token_id, dtype=np.int64)
        targets_BT = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        for b, row in enumerate(rows):
            inputs_BT[b, 1 : len(row) + 1] = row
            targets_BT[b, : len(row)] = row
        return inputs_BT, targets_BT


def prepare(dataset: str, model_folder: Path | None, model: str) -> Corpus:
    """A dataset as tokens, from the cache or made now; safe to be called by several processes at once.

    Args:
        dataset: as a sweep names it.
        model_folder: where the tokenizer's files are; None: a tokenizer is trained on the corpus.
        model: the model's name, for messages.

    Raises:
        UserError: if the dataset or the tokenizer cannot be had.
    """
    source = resolve_source(dataset)
    loaded = None if model_folder is None else tokenizer.load(model_folder, model)
    spoken = "trained here" if loaded is None else tokenizer.compute_fingerprint(tokenizer.serialize_files(loaded))
    named = [
        FORMAT_VERSION,
        CLEANING_VERSION,
        source.kind,
        source.hub_id,
        source.config_name,
        source.revision,
        spoken,
        _split_variant(dataset),
    ]
    fingerprint = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:20]

    def build(folder: Path) -> None:
        _write_corpus(_tokenize(source, loaded, fingerprint), folder, model)

    return _load_corpus(cache.get_or_build("corpora", fingerprint, build))


def load_cached(fingerprint: str) -> Corpus | None:
    """The corpus with a fingerprint, if it was prepared on this machine before."""
    folder = cache.root_dir() / "corpora" / fingerprint
    return _load_corpus(folder) if folder.exists() else None


def _split_variant(dataset: str) -> str:
    """What sets apart datasets of one source: `imdb` and `stanfordnlp/imdb` are split otherwise."""
    return dataset if dataset in DATASETS else "general"


def load_cached_sizes(dataset: str, model: str) -> dict[str, int] | None:
    """Tokens and words of a corpus that was prepared before, without asking the hub; None if there is none.

    The GPT-2 sizes share a tokenizer, so that what was prepared for one of them is known for all.
    """
    vocabulary = MODELS[model].shape.vocab_size if model in MODELS else None
    for file in (cache.root_dir() / "corpora").glob("[!.]*/corpus.json"):
        meta = json.loads(file.read_text())
        if meta["dataset"] == dataset and (meta["model"] == model or meta["vocabulary"] == vocabulary):
            return {name: value for name, value in meta.items() if isinstance(value, int)}
    return None


def _tokenize(source: Source, pretrained_tokenizer: PreTrainedTokenizerBase | None, fingerprint: str) -> Corpus:
    train, validation = read_splits(source)
    spoken = pretrained_tokenizer or tokenizer.train(train.pieces)
    vocabulary, end_of_text = len(spoken), spoken.eos_token_id
    assert isinstance(end_of_text, int)
    kind = np.min_scalar_type(vocabulary - 1)
    streams = [
        TokenSplit(
            _concatenate_tokens(spoken, split, end_of_text if split.is_documents else None, kind), split.num_words
        )
        for split in (train, validation)
    ]
    for name, stream in zip(("train", "validation"), streams, strict=True):
        if len(stream.tokens) == 0:
            raise UserError(f"dataset {source.name}: its {name} split has no text")
    files = tokenizer.serialize_files(spoken)
    return Corpus(source.name, source.revision, fingerprint, streams[0], streams[1], end_of_text, vocabulary, files)


def _concatenate_tokens(
    hf_tokenizer: PreTrainedTokenizerBase, split: TextSplit, eos_token_id: int | None, dtype: npt.DTypeLike
) -> Tokens:
    """All pieces one after another, each followed by `ending` where there is one."""
    arrays: list[Tokens] = []
    tail = np.array([] if eos_token_id is None else [eos_token_id], dtype=dtype)
    for start in range(0, len(split.pieces), PIECES_PER_BATCH):
        for ids in tokenizer.encode(hf_tokenizer, list(split.pieces[start : start + PIECES_PER_BATCH])):
            arrays += [np.array(ids, dtype=dtype), tail]
    return np.concatenate(arrays) if arrays else np.array([], dtype=dtype)


def _write_corpus(tokenized: Corpus, folder: Path, model: str) -> None:
    for name, split in tokenized.splits():
        np.save(folder / f"{name}.npy", split.tokens)
    (folder / "tokenizer").mkdir()
    for file, content in tokenized.tokenizer_files.items():
        (folder / "tokenizer" / file).write_bytes(content)
    meta = {
        "dataset": tokenized.dataset,
        "revision": tokenized.revision,
        "model": model,
        "train_tokens": len(tokenized.train.tokens),
        "train_words": tokenized.train.num_words,
        "validation_tokens": len(tokenized.validation.tokens),
        "validation_words": tokenized.validation.num_words,
        "end_of_text": tokenized.eos_token_id,
        "vocabulary": tokenized.vocab_size,
    }
    (folder / "corpus.json").write_text(json.dumps(meta, indent=2))


def _load_corpus(folder: Path) -> Corpus:
    meta = json.loads((folder / "corpus.json").read_text())
    train, validation = (
        TokenSplit(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")), meta[f"{name}_words"])
        for name in ("train", "validation")
    )
    files = {path.name: path.read_bytes() for path in sorted((folder / "tokenizer").iterdir())}
    return Corpus(
        meta["dataset"],
        meta["revision"],
        folder.name,
        train,
        validation,
        meta["end_of_text"],
        meta["vocabulary"],
        files,
    )
