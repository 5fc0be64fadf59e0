"""Tokenisation in bounded memory: long texts are cut where the tokenizer begins a new token anyway.

A cut never changes a token: before each one, the tokenizer is asked for the tokens around it.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEGMENT_CHARACTERS = 100_000
"""Characters after which a text may be cut."""
BATCH_CHARACTERS = 1_000_000
"""Characters that are tokenized in one call: a fast tokenizer takes about 150 bytes for each."""
MAX_BATCH_SEGMENTS = 1_000
"""Texts that are tokenized in one call, at most."""
CONTEXT_CHARACTERS = 256
"""Characters on each side of a cut that the tokenizer is asked about."""
MAX_CUTS_TRIED = 50
"""Places of one kind that are tried before more text is read."""
MAX_UNBROKEN_CHARACTERS = 4_000_000
"""Longest text without a place to cut; a longer one is refused, since it would take 600 MB and more."""

WORD_STARTS = re.compile(r"(?<=\S)(?=\s)")
"""Places before white space: no tokenizer in use has a token that goes on there."""
_KIND_CHANGES = re.compile(r"(?<=[^\W\d])(?=[\W\d])|(?<=\d)(?=\D)|(?<=\W)(?=\w)")
"""Places between letters, digits and others, for texts without spaces."""


@dataclass(frozen=True)
class _Segment:
    """Part of a text that is tokenized by itself."""

    text: str
    context: str
    """End of the text before it, which its first token depends on; empty if it does not."""
    is_last: bool
    """True at the end of a text."""


def encode_batch(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens. Runs on all cores."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[Iterable[str]], eos_token_id: int | None
) -> Iterator[list[int]]:
    """Yield the token ids of texts, in parts, as if each text was tokenized whole.

    Args:
        tokenizer: the tokenizer.
        texts: each text in any number of pieces, which are joined.
        eos_token_id: token that follows each text; None: none.

    Raises:
        UserError: if a text has no place to cut.
    """
    batch: list[_Segment] = []
    size = 0
    for segment in (segment for pieces in texts for segment in _split_text(tokenizer, pieces)):
        batch.append(segment)
        size += len(segment.text)
        if size >= BATCH_CHARACTERS or len(batch) >= MAX_BATCH_SEGMENTS:
            yield from _encode_segments(tokenizer, batch, eos_token_id)
            batch, size = [], 0
    yield from _encode_segments(tokenizer, batch, eos_token_id)


def _encode_segments(
    tokenizer: PreTrainedTokenizerBase, segments: list[_Segment], eos_token_id: int | None
) -> Iterator[list[int]]:
    if not segments:
        return
    contexts = [segment.context for segment in segments if segment.context]
    contexts_ids = iter(encode_batch(tokenizer, contexts) if contexts else [])
    encoded = encode_batch(tokenizer, [segment.context + segment.text for segment in segments])
    for segment, ids in zip(segments, encoded, strict=True):
        if segment.context:
            ids = _without_prefix(ids, next(contexts_ids))
        yield ids if eos_token_id is None or not segment.is_last else [*ids, eos_token_id]


def _without_prefix(ids: list[int], prefix: list[int]) -> list[int]:
    """Return the ids behind a prefix.

    Raises:
        UserError: if they do not begin with it: tokens depend on text that is far away.
    """
    if ids[: len(prefix)] != prefix:
        raise UserError(
            "a tokenizer gives other tokens to the beginning of a text if more text follows; "
            "expected one whose tokens depend on the text nearby"
        )
    return ids[len(prefix) :]


def _split_text(tokenizer: PreTrainedTokenizerBase, pieces: Iterable[str]) -> Iterator[_Segment]:
    """Yield a text in segments of about `SEGMENT_CHARACTERS`; of an empty text, one empty segment."""
    text, context, start = "", "", 0
    for piece in pieces:
        text, start = text[start:] + piece, 0
        while len(text) - start >= SEGMENT_CHARACTERS + 2 * CONTEXT_CHARACTERS:
            cut = _find_cut(tokenizer, text, start + SEGMENT_CHARACTERS)
            if cut is None:
                _check_unbroken(len(text) - start)
                break
            yield _Segment(text[start : cut.position], context, is_last=False)
            context, start = cut.context, cut.position
    yield _Segment(text[start:], context, is_last=True)


def _check_unbroken(num_characters: int) -> None:
    if num_characters > MAX_UNBROKEN_CHARACTERS:
        raise UserError(
            f"a text has {num_characters:,} characters without a space or another place to divide it; "
            f"expected at most {MAX_UNBROKEN_CHARACTERS:,}: break it into lines"
        )


@dataclass(frozen=True)
class _Cut:
    """Place where a text may be cut."""

    position: int
    context: str
    """Text before it that the next tokens depend on; empty if they do not."""


def _find_cut(tokenizer: PreTrainedTokenizerBase, text: str, first: int) -> _Cut | None:
    """Return a place to cut at or behind a position, or None if there is none up to the last characters."""
    for pattern in (WORD_STARTS, _KIND_CHANGES):
        places = pattern.finditer(text, first, len(text) - CONTEXT_CHARACTERS)
        for match in itertools.islice(places, MAX_CUTS_TRIED):
            position = match.start()
            context, head = _context_before(text, position), text[position : position + CONTEXT_CHARACTERS]
            joined, left, right = encode_batch(tokenizer, [context + head, context, head])
            if joined == left + right:
                return _Cut(position, "")
            if joined[: len(left)] == left:
                return _Cut(position, context)
    return None


def _context_before(text: str, position: int) -> str:
    """Return the characters before a position, from the beginning of a word if there is one."""
    begin = max(0, position - CONTEXT_CHARACTERS)
    word = WORD_STARTS.search(text, begin, position) if begin else None
    return text[word.start() if word else begin : position]
