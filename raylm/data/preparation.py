"""Preparation of a corpus: tokenized once, and cached under its fingerprint."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raylm.config.catalog import DATASETS, MODELS
from raylm.config.dataset import DatasetSpec
from raylm.data import cache, encoding, sources, tokenizer
from raylm.data.corpus import Corpus, TokenSplit
from raylm.data.sources import Source
from raylm.data.text import Piece, TextSplit, spaceless_percent
from raylm.data.token_file import TokenFileWriter
from raylm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


log = logging.getLogger(__name__)

FINGERPRINT_VERSION = "2"
"""Part of every fingerprint; a new one would make the corpora of all earlier launches look changed."""
FORMAT_VERSION = "3"
"""Version of the cached files; part of the names of their folders."""
SAMPLE_CHARACTERS = 20_000
"""Characters of the validation split that are decoded again, to find out whether the tokenizer loses text."""


def prepare(
    spec: DatasetSpec,
    model_folder: Path | None,
    model: str,
    *,
    max_train_tokens: int | None = None,
) -> Corpus:
    """Return a dataset as tokens, from the cache or tokenized now. Several processes may call this at once.

    Text is read and tokenized in parts: no split is in memory whole.

    Args:
        spec: dataset of the trial.
        model_folder: folder of the tokenizer's files; if None, a tokenizer is trained on the corpus.
        model: name of the model, for messages.
        max_train_tokens: number of tokens of the train split that are enough; no more of a Hub dataset is read. None:
            all are needed.

    Raises:
        UserError: if the dataset or the tokenizer cannot be loaded, or the tokenizer is not usable.
    """
    source = sources.resolve_source(spec)
    pretrained = None if model_folder is None else tokenizer.load(model_folder, model)
    fingerprint = _compute_fingerprint(source, pretrained)
    name = _folder_name(fingerprint) + (f"-{source.test_revision[:10]}" if source.test_revision else "")
    if max_train_tokens is not None and source.kind == "hub" and source.name not in DATASETS:
        name += "" if cache.find_entry("corpora", name) else f"-{max_train_tokens}"
    else:
        max_train_tokens = None

    def build(folder: Path) -> None:
        _CorpusBuilder(source, folder, model, max_train_tokens).build(pretrained, fingerprint)

    return _load_corpus(cache.get_or_build("corpora", name, build))


def _folder_name(fingerprint: str) -> str:
    return f"{fingerprint}-v{FORMAT_VERSION}"


def load_cached(fingerprint: str) -> Corpus | None:
    """Return the corpus with a fingerprint, or None if it was not prepared on this machine."""
    folder = cache.find_entry("corpora", _folder_name(fingerprint))
    return _load_corpus(folder) if folder else None


def load_cached_sizes(spec: DatasetSpec, model: str) -> dict[str, int] | None:
    """Return the numbers of tokens and words of a prepared corpus without a request to the Hub; None if there is none.

    The GPT-2 sizes share a tokenizer, so that a corpus prepared for one of them gives the sizes for all.
    """
    vocab_size = MODELS[model].shape.vocab_size if model in MODELS else None
    for file in cache.find_files("corpora", f"[!.]*-v{FORMAT_VERSION}/corpus.json"):
        meta = json.loads(file.read_text())
        is_same_text = meta["dataset"] == spec.dataset and meta["options"] == spec.options
        if is_same_text and (meta["model"] == model or meta["vocabulary"] == vocab_size):
            return {name: value for name, value in meta.items() if isinstance(value, int)}
    return None


def _compute_fingerprint(source: Source, pretrained: PreTrainedTokenizerBase | None) -> str:
    """Return the hash of all that the tokens of a corpus and the beginning of its windows depend on."""
    files = None if pretrained is None else tokenizer.serialize_files(pretrained)
    parts: list[str | None] = [
        FINGERPRINT_VERSION,
        sources.CLEANING_VERSION,
        source.kind,
        source.hub_id,
        source.config_name,
        source.revision,
        "trained here" if files is None else tokenizer.compute_fingerprint(files),
        source.name if source.name in DATASETS else "general",  # `imdb` and `stanfordnlp/imdb` have different splits
    ]
    if pretrained is not None and tokenizer.own_start_token_id(pretrained) is not None:
        parts.append("starts with a token of its own")
    if source.reading:
        parts.append(source.reading)
    parts += [f"{name}={value}" for name, value in source.spec.options.items()]
    return _hash_parts(parts)


def _hash_parts(parts: Sequence[str | None]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class _CorpusBuilder:
    """Writer of a corpus into a folder of the cache."""

    source: Source
    folder: Path
    model: str
    """Name of the model, for messages."""
    max_train_tokens: int | None

    def build(self, pretrained: PreTrainedTokenizerBase | None, fingerprint: str) -> None:
        """Read, tokenize and write all splits and the tokenizer's files."""
        train, validation, test = sources.read_splits(self.source, is_partial=self.max_train_tokens is not None)
        if pretrained is None:
            texts = ((piece.text for piece in text) for text in train.texts)
            hf_tokenizer, is_limited = tokenizer.train(texts)
            fingerprint = _hash_parts([fingerprint, "limited"]) if is_limited else fingerprint
        else:
            hf_tokenizer = pretrained
        splits = {"train": train, "validation": validation} | ({} if test is None else {"test": test})
        meta = {
            "dataset": self.source.name,
            "options": self.source.spec.options,
            "revision": self.source.revision,
            "model": self.model,
            "fingerprint": fingerprint,
            "end_of_text": hf_tokenizer.eos_token_id,
            "own_start_token": tokenizer.own_start_token_id(hf_tokenizer),
            "vocabulary": tokenizer.vocab_size(hf_tokenizer),
        }
        for name, split in splits.items():
            max_tokens = self.max_train_tokens if name == "train" else None
            try:
                sizes = self._write_split(name, split, hf_tokenizer, max_tokens)
            except UserError as error:
                if name != "test":
                    raise
                log.warning("%s; it has no test split then", error)  # often published without text
                continue
            meta |= {f"{name}_{key}": size for key, size in sizes.items()}
        tokens = np.load(self.folder / "validation.npy", mmap_mode="r")
        sample = next((piece.text for piece in validation.pieces if piece.text.strip()), "")[:SAMPLE_CHARACTERS]
        meta["unknown_share"] = tokenizer.unknown_share(hf_tokenizer, tokens)
        meta["is_lossless"] = tokenizer.is_lossless(hf_tokenizer, sample)
        meta["spaceless_percent"] = spaceless_percent(sample)
        (self.folder / "tokenizer").mkdir()
        for file, content in tokenizer.serialize_files(hf_tokenizer).items():
            (self.folder / "tokenizer" / file).write_bytes(content)
        (self.folder / "corpus.json").write_text(json.dumps(meta, indent=2))

    def _write_split(
        self, name: str, split: TextSplit, hf_tokenizer: PreTrainedTokenizerBase, max_tokens: int | None
    ) -> dict[str, int]:
        """Write the tokens of a split, of the first pieces that have `max_tokens`; return tokens, words and bytes.

        Raises:
            UserError: if it has no text.
        """
        words = num_bytes = 0

        def count(pieces: Iterable[Piece]) -> Iterator[str]:
            nonlocal words, num_bytes
            for piece in pieces:
                words, num_bytes = words + piece.num_words, num_bytes + piece.num_bytes
                yield piece.text

        eos_token_id = hf_tokenizer.eos_token_id if split.is_documents else None
        assert eos_token_id is None or isinstance(eos_token_id, int)
        dtype = np.min_scalar_type(tokenizer.vocab_size(hf_tokenizer) - 1)
        with TokenFileWriter(self.folder / f"{name}.npy", dtype) as file:
            for ids in encoding.encode_texts(hf_tokenizer, map(count, split.texts), eos_token_id):
                file.append(ids)
                if max_tokens is not None and file.num_tokens >= max_tokens:
                    break
        if words == 0:
            raise UserError(f"dataset {self.source.name}: its {name} split has no text")
        return {"tokens": file.num_tokens, "words": words, "bytes": num_bytes}


def _load_corpus(folder: Path) -> Corpus:
    meta = json.loads((folder / "corpus.json").read_text())
    splits = {
        name: TokenSplit(
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")), meta[f"{name}_words"], meta[f"{name}_bytes"]
        )
        for name in ("train", "validation", "test")
        if f"{name}_words" in meta
    }
    return Corpus(
        dataset=meta["dataset"],
        revision=meta["revision"],
        fingerprint=meta["fingerprint"],
        train=splits["train"],
        validation=splits["validation"],
        test=splits.get("test"),
        own_start_token_id=meta["own_start_token"],
        eos_token_id=meta["end_of_text"],
        vocab_size=meta["vocabulary"],
        unknown_share=meta["unknown_share"],
        is_lossless=meta["is_lossless"],
        spaceless_percent=meta.get("spaceless_percent"),
        tokenizer_files={path.name: path.read_bytes() for path in sorted((folder / "tokenizer").iterdir())},
    )
