"""A tokenized corpus, and the windows that a model is trained on.

B is the batch size, T the context length, N the number of tokens of a split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORE_INDEX = -100
"""Target that does not count in the loss; pads the last, shorter window of a split."""

Tokens = npt.NDArray[np.unsignedinteger[Any]]
WindowIndices = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class TokenSplit:
    """A split as one stream of tokens."""

    tokens: Tokens
    """Token ids, shape (N,), in the smallest unsigned integer type that holds the vocabulary."""
    num_words: int
    """Number of words of the original text."""
    num_bytes: int = 0
    """Number of bytes of the original text in UTF-8; 0: not counted."""

    def per_word(self, loss: float) -> float:
        """Return a loss per token as one per word; a split without a word counts as one of one word."""
        return loss * len(self.tokens) / max(1, self.num_words)

    def per_byte(self, loss: float) -> float:
        """Return a loss per token as one per byte; NaN if bytes were not counted."""
        return loss * len(self.tokens) / self.num_bytes if self.num_bytes else math.nan


@dataclass(frozen=True)
class Corpus:
    """A dataset, tokenized with one tokenizer, and that tokenizer's files."""

    dataset: str
    """Name of the dataset in a sweep."""
    revision: str
    """Commit of the Hub repository, or hash of the local text."""
    fingerprint: str
    """Hash that identifies text, cleaning and tokenizer."""
    train: TokenSplit
    """Split to train on."""
    validation: TokenSplit
    """Split to evaluate on."""
    eos_token_id: int
    """Token that ends each document."""
    vocab_size: int
    """Number of different tokens."""
    tokenizer_files: dict[str, bytes]
    """Files of the tokenizer by name."""
    test: TokenSplit | None = None
    """Split that is neither trained on nor used to choose anything; None: the dataset has none."""
    own_start_token_id: int | None = None
    """Token that starts each window, if the tokenizer has one that is not the end of a document."""
    unknown_share: float = 0.0
    """Part of the validation split's tokens, from 0 to 1, that stand for text that the tokenizer does not know."""
    is_lossless: bool = True
    """False if the tokens do not give the text again: losses are then those of another text, and are not compared with
    those of other tokenizers."""
    spaceless_percent: int | None = None
    """Percentage of the letters of a sample of the validation split that are of scripts without spaces between words;
    None: not counted."""

    @property
    def start_token_id(self) -> int:
        """Token that starts each window: the tokenizer's own beginning of text, else the end of a document."""
        return self.eos_token_id if self.own_start_token_id is None else self.own_start_token_id

    def splits(self) -> list[tuple[str, TokenSplit]]:
        """Return the names and splits, `train` first."""
        return [("train", self.train), ("validation", self.validation)]


@dataclass(frozen=True)
class Windows:
    """A stream of N tokens as windows of T positions that predict every token exactly once.

    Each window is the start token followed by the next T - 1 tokens of the stream. The last one may be shorter.
    """

    tokens: Tokens
    context_length: int
    start_token_id: int

    def __len__(self) -> int:
        return -(-len(self.tokens) // (self.context_length - 1))

    def count_tokens(self, indices: Sequence[int] | WindowIndices) -> int:
        """Return the number of tokens predicted in the windows with these indices."""
        stride = self.context_length - 1
        return sum(min(stride, len(self.tokens) - int(i) * stride) for i in indices)

    def get_batch(self, indices: Sequence[int] | WindowIndices) -> tuple[npt.NDArray[np.int64], ...]:
        """Return the windows with these indices.

        Returns:
            Inputs and targets, shape (B, T) each; T is smaller if all of these windows are shorter. The target of a
            position is the input of the next one. The last position and padding have the target `IGNORE_INDEX`.
            Without indices, one window of a single, ignored position.
        """
        stride = self.context_length - 1
        rows = [self.tokens[i * stride : (i + 1) * stride] for i in indices]
        shape = (max(1, len(rows)), max(map(len, rows), default=0) + 1)
        inputs_BT = np.full(shape, self.start_token_id, dtype=np.int64)
        targets_BT = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        for b, row in enumerate(rows):
            inputs_BT[b, 1 : len(row) + 1] = row
            targets_BT[b, : len(row)] = row
        return inputs_BT, targets_BT
