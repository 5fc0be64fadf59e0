"""Tokenisation in parts: no cut changes a token, whatever the text and the tokenizer."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import TEXT, TOKENIZERS
from transformers import PreTrainedTokenizerFast

from raylm.data import encoding
from raylm.data.encoding import encode_batch, encode_texts
from raylm.errors import UserError

RANDOM = random.Random(0)
TEXTS = {
    "documentation": TEXT[:60_000],
    "spaces at line ends": "".join(f" line {number} of some words \n" for number in range(2_000)),
    "white space": "".join(RANDOM.choice(["a", "  ", "\n\n", " b", "\t", "x1"]) for _ in range(20_000)),
    "base64": "".join(RANDOM.choice("ABCDEFabcdef0123456789+/") for _ in range(30_000)),
    "Chinese": "".join(RANDOM.choice("的一是不了人我在有他这中大来上国。，") for _ in range(20_000)),
    "contractions": "don't I'll we've it's 'tis x'y 5's " * 1_000,
    "separators": "a\u00a0b \u2028 c\x0cd\r\n " * 2_000,
}

tokenizer_named = functools.cache(lambda name: TOKENIZERS[name]())


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut texts after 1,500 characters."""
    monkeypatch.setattr(encoding, "SEGMENT_CHARACTERS", 1_500)


def encode(tokenizer: PreTrainedTokenizerFast, text: str, piece: int = 700) -> list[int]:
    """Return the ids of a text that is read in pieces."""
    pieces = [text[start : start + piece] for start in range(0, len(text), piece)]
    return [number for ids in encode_texts(tokenizer, [pieces], None) for number in ids]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_of_parts_are_those_of_the_whole_text(name: str, kind: str) -> None:
    tokenizer, text = tokenizer_named(name), TEXTS[kind]
    assert len(list(encoding._split_text(tokenizer, [text]))) >= 8, "the text is cut"
    assert encode(tokenizer, text) == encode_batch(tokenizer, [text])[0]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    words=st.lists(st.text("aB1 \n'é中\t.\u3000", max_size=6), min_size=300, max_size=800),
    name=st.sampled_from(sorted(TOKENIZERS)),
    piece=st.integers(1, 3_000),
)
def test_tokens_of_parts_of_any_text_are_those_of_the_whole(words: list[str], name: str, piece: int) -> None:
    text = "".join(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "SEGMENT_CHARACTERS", 300)
        patch.setattr(encoding, "CONTEXT_CHARACTERS", 64)
        assert encode(tokenizer_named(name), text, piece) == encode_batch(tokenizer_named(name), [text])[0]


def test_each_document_is_followed_by_the_end_of_text() -> None:
    tokenizer = tokenizer_named("byte level")
    documents = [["one"], [], [TEXT[:4_000], TEXT[4_000:9_000]], [""]]
    ids = [number for part in encode_texts(tokenizer, documents, 2) for number in part]
    expected = [encode_batch(tokenizer, ["".join(document)])[0] + [2] for document in documents]
    assert ids == [number for document in expected for number in document]


def test_text_without_a_place_to_cut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_UNBROKEN_CHARACTERS", 20_000)
    with pytest.raises(UserError, match="without a space or another place to divide it"):
        encode(tokenizer_named("byte level"), "ACGT" * 10_000)


def test_text_is_read_no_further_than_its_tokens_are_needed() -> None:
    read = 0

    def pieces() -> Iterator[str]:
        nonlocal read
        for _ in range(10_000):
            read += 1
            yield TEXT[:10_000]

    next(encode_texts(tokenizer_named("byte level"), [pieces()], None))
    assert read * 10_000 <= 2 * encoding.BATCH_CHARACTERS


def test_text_that_changes_tokens_far_before_it_is_refused() -> None:
    class Fickle:
        """Tokenizer whose first token is the number of characters."""

        def __call__(self, texts: list[str], **kwargs: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[len(text) if len(text) > 1_000 else 0, *map(ord, text[1:])] for text in texts]}

    fickle: Any = Fickle()
    with pytest.raises(UserError, match="depend on the text nearby"):
        list(encode_texts(fickle, [[TEXT[:5_000]]], None))
