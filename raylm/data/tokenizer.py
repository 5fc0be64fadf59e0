"""Tokenizers: loaded from a model's files, or trained on a corpus."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from raylm.config.catalog import NANO_VOCAB_SIZE
from raylm.errors import UserError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


END_OF_TEXT = "<|endoftext|>"
MAX_TRAIN_CHARACTERS = 20_000_000
"""Most text of the train split that a byte-level BPE is trained on; more does not change its merges."""


def load(folder: Path, model: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a model's folder.

    Raises:
        UserError: if the folder has none, or it has no end-of-text token. (Without tokenizer files, transformers
            silently returns a generic tokenizer, which has none.)
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"model {model}: its tokenizer cannot be loaded: {one_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"model {model}: its tokenizer has no end-of-text token; expected one in tokenizer_config.json")
    return tokenizer


def train(pieces: Iterable[str]) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE like GPT-2's, with 4,096 tokens (fewer on a tiny corpus), trained on these texts."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        _limit_characters(pieces, MAX_TRAIN_CHARACTERS),
        vocab_size=NANO_VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "tokenizer.json"))
        bpe.save(file)
        return PreTrainedTokenizerFast(
            tokenizer_file=file, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
        )


def _limit_characters(pieces: Iterable[str], max_characters: int) -> Iterator[str]:
    for piece in pieces:
        if max_characters <= 0:
            return
        yield piece[:max_characters]
        max_characters -= len(piece)


def serialize_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """Return the files that `save_pretrained` writes, by name; they are small enough to be sent with the tokens."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if path.is_file()}


def compute_fingerprint(tokenizer_files: dict[str, bytes]) -> str:
    """Return a hash of a tokenizer's files; tokenizers with equal hashes give equal tokens."""
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer_files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def encode(tokenizer: PreTrainedTokenizerBase, pieces: list[str]) -> list[list[int]]:
    """Return the token ids of each piece, without special tokens. Runs on all cores."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    encoded = tokenizer(pieces, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids
