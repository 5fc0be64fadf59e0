"""Preparation of a corpus: tokenized once, and cached under its fingerprint."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raylm.config.catalog import DATASETS, MODELS
from raylm.data import cache, sources, tokenizer
from raylm.data.corpus import Corpus, Tokens, TokenSplit
from raylm.data.sources import Source, TextSplit
from raylm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


FORMAT_VERSION = "2"
"""Version of the cached files; part of every fingerprint."""
PIECES_PER_BATCH = 1_000
"""Number of pieces of text that are tokenized in one call."""


def prepare(dataset: str, model_folder: Path | None, model: str) -> Corpus:
    """Return a dataset as tokens, from the cache or tokenized now. Several processes may call this at once.

    Args:
        dataset: name of the dataset in a sweep.
        model_folder: folder of the tokenizer's files; if None, a tokenizer is trained on the corpus.
        model: name of the model, for messages.

    Raises:
        UserError: if the dataset or the tokenizer cannot be loaded.
    """
    source = sources.resolve_source(dataset)
    pretrained = None if model_folder is None else tokenizer.load(model_folder, model)
    fingerprint = _compute_fingerprint(source, pretrained)

    def build(folder: Path) -> None:
        _write_corpus(_tokenize(source, pretrained, fingerprint), folder, model)

    return _load_corpus(cache.get_or_build("corpora", fingerprint, build))


def load_cached(fingerprint: str) -> Corpus | None:
    """Return the corpus with a fingerprint, or None if it was not prepared on this machine."""
    folder = cache.root_dir() / "corpora" / fingerprint
    return _load_corpus(folder) if folder.exists() else None


def load_cached_sizes(dataset: str, model: str) -> dict[str, int] | None:
    """Return the numbers of tokens and words of a prepared corpus without a request to the Hub; None if there is none.

    The GPT-2 sizes share a tokenizer, so that a corpus prepared for one of them gives the sizes for all.
    """
    vocab_size = MODELS[model].shape.vocab_size if model in MODELS else None
    for file in (cache.root_dir() / "corpora").glob("[!.]*/corpus.json"):
        meta = json.loads(file.read_text())
        if meta["dataset"] == dataset and (meta["model"] == model or meta["vocabulary"] == vocab_size):
            return {name: value for name, value in meta.items() if isinstance(value, int)}
    return None


def _compute_fingerprint(source: Source, pretrained: PreTrainedTokenizerBase | None) -> str:
    """Return the hash of all that the tokens of a corpus depend on."""
    files = None if pretrained is None else tokenizer.serialize_files(pretrained)
    parts = [
        FORMAT_VERSION,
        sources.CLEANING_VERSION,
        source.kind,
        source.hub_id,
        source.config_name,
        source.revision,
        "trained here" if files is None else tokenizer.compute_fingerprint(files),
        source.name if source.name in DATASETS else "general",  # `imdb` and `stanfordnlp/imdb` have different splits
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


def _tokenize(source: Source, pretrained: PreTrainedTokenizerBase | None, fingerprint: str) -> Corpus:
    text_splits = sources.read_splits(source)
    hf_tokenizer = pretrained or tokenizer.train(text_splits[0].pieces)
    vocab_size, eos_token_id = len(hf_tokenizer), hf_tokenizer.eos_token_id
    assert isinstance(eos_token_id, int)
    dtype = np.min_scalar_type(vocab_size - 1)
    train, validation = (
        TokenSplit(
            _concatenate_tokens(hf_tokenizer, split, eos_token_id if split.is_documents else None, dtype),
            split.num_words,
        )
        for split in text_splits
    )
    files = tokenizer.serialize_files(hf_tokenizer)
    corpus = Corpus(source.name, source.revision, fingerprint, train, validation, eos_token_id, vocab_size, files)
    for name, split in corpus.splits():
        if len(split.tokens) == 0:
            raise UserError(f"dataset {source.name}: its {name} split has no text")
    return corpus


def _concatenate_tokens(
    hf_tokenizer: PreTrainedTokenizerBase, split: TextSplit, eos_token_id: int | None, dtype: npt.DTypeLike
) -> Tokens:
    """Return the tokens of all pieces, each followed by the end-of-text token unless that is None."""
    arrays: list[Tokens] = []
    tail = np.array([] if eos_token_id is None else [eos_token_id], dtype=dtype)
    for start in range(0, len(split.pieces), PIECES_PER_BATCH):
        for ids in tokenizer.encode(hf_tokenizer, list(split.pieces[start : start + PIECES_PER_BATCH])):
            arrays += [np.array(ids, dtype=dtype), tail]
    return np.concatenate(arrays) if arrays else np.array([], dtype=dtype)


# ---- the files of a cached corpus ---------------------------------------------------------------------------------


def _write_corpus(corpus: Corpus, folder: Path, model: str) -> None:
    for name, split in corpus.splits():
        np.save(folder / f"{name}.npy", split.tokens)
    (folder / "tokenizer").mkdir()
    for file, content in corpus.tokenizer_files.items():
        (folder / "tokenizer" / file).write_bytes(content)
    meta = {
        "dataset": corpus.dataset,
        "revision": corpus.revision,
        "model": model,
        "train_tokens": len(corpus.train.tokens),
        "train_words": corpus.train.num_words,
        "validation_tokens": len(corpus.validation.tokens),
        "validation_words": corpus.validation.num_words,
        "end_of_text": corpus.eos_token_id,
        "vocabulary": corpus.vocab_size,
    }
    (folder / "corpus.json").write_text(json.dumps(meta, indent=2))


def _load_corpus(folder: Path) -> Corpus:
    meta = json.loads((folder / "corpus.json").read_text())
    train, validation = (
        TokenSplit(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")), meta[f"{name}_words"])
        for name in ("train", "validation")
    )
    return Corpus(
        dataset=meta["dataset"],
        revision=meta["revision"],
        fingerprint=folder.name,
        train=train,
        validation=validation,
        eos_token_id=meta["end_of_text"],
        vocab_size=meta["vocabulary"],
        tokenizer_files={path.name: path.read_bytes() for path in sorted((folder / "tokenizer").iterdir())},
    )
