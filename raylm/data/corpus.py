"""A tokenized corpus, and the windows that a model is trained on.

B is the batch size, T the context length, N the number of tokens of a split.
"""

from __future__ import annotations

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
    """Token that starts each window and ends each document."""
    vocab_size: int
    """Number of different tokens."""
    tokenizer_files: dict[str, bytes]

    def splits(self) -> list[tuple[str, TokenSplit]]:
        """Return the names and splits, `train` first."""
        return [("train", self.train), ("validation", self.validation)]


@dataclass(frozen=True)
class Windows:
    """A stream of N tokens as windows of T positions that predict every token exactly once.

    Each window is the end-of-text token followed by the next T - 1 tokens of the stream. The last one may be shorter.
    """

    tokens: Tokens
    context_length: int
    eos_token_id: int

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
        inputs_BT = np.full(shape, self.eos_token_id, dtype=np.int64)
        targets_BT = np.full(shape, IGNORE_INDEX, dtype=np.int64)
        for b, row in enumerate(rows):
            inputs_BT[b, 1 : len(row) + 1] = row
            targets_BT[b, : len(row)] = row
        return inputs_BT, targets_BT
