"""Random text files: trained on as they are, or refused in one line."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzz_trials import (
    LEARNING_RATE,
    Losses,
    Texts,
    assert_equal,
    encode,
    expected_losses,
    fuzz,
    load_nano,
    temporary_folder,
    train,
    train_tokenizer,
)
from hypothesis import given
from hypothesis import strategies as st

from raylm.data import encoding, text

LATIN = [
    "a",
    "the",
    "of",
    "Zug",
    "na\u00efve",
    "e\u0301",
    "x1",
    "12345",
    "don't",
    "ACGTACGGT",
    "QUJDREVG",
    "{}();",
    '"',
]
OTHERS = ["<|endoftext|>", "的一是不", "日本語。", "مرحبا", "🙂🏽"]
CONTROLS = ["\x1b[31m", "\x07", "\x7f", "\u200d", "\u202e", "\ufeff", "\ufffd"]
WORDS = st.sampled_from([*LATIN, *OTHERS, *CONTROLS])
SPACES = st.sampled_from([" ", " ", " ", "  ", "\t", "\u00a0", "\u3000", ""])
LINE_ENDS = st.sampled_from(
    ["\n", "\n", "\n", "\r\n", "\r", "\n\n", " \n", "\n \n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"]
)
LINES = st.builds(
    lambda words, end, times: "".join(map("".join, words)) * times + end,
    st.lists(st.tuples(WORDS, SPACES), min_size=1, max_size=8),
    LINE_ENDS,
    st.sampled_from([1, 1, 1, 1, 15]),
)
CONTENTS = st.lists(LINES, min_size=8, max_size=30).map("".join)
FEW_LINES = st.lists(LINES, max_size=3).map("".join)
GARBAGE = st.sampled_from([b"\xff", b"\xed\xa0\x80", b"\xc3", b"\0", b"\xf5\x80\x80\x80", b"\x80", b"\xe2\x80"])
ENCODINGS = st.sampled_from(["utf-16", "utf-16-le", "utf-32", "latin-1", "utf-7", "cp037", "shift-jis"])
TEXT_BYTES = st.one_of(
    *[CONTENTS.map(str.encode)] * 3, CONTENTS.map(lambda content: codecs.BOM_UTF8 + content.encode())
)
OTHER_BYTES = st.one_of(
    FEW_LINES.map(str.encode),
    st.builds(lambda content, encoding: content.encode(encoding, "replace"), CONTENTS, ENCODINGS),
    st.builds(lambda content, encoding: content.encode(encoding, "replace"), CONTENTS, ENCODINGS),
    st.builds(lambda a, b, c: a.encode() + b + c.encode(), CONTENTS, GARBAGE, CONTENTS),
    st.binary(max_size=60),
)
FIELDS = st.builds(
    lambda length, kind, limit: {"context_length": length} | ({"documents": kind} if kind else {}) | limit,
    st.integers(2, 12),
    st.sampled_from([None, None, "line", "line", "blank-line", "file"]),
    st.one_of(*[st.just({})] * 4, st.builds(lambda n: {"max_documents": n}, st.integers(2, 12))),
)
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".txt": bytes,
    ".md": bytes,
    "": bytes,
    ".TXT": bytes,
    ".txt.gz": gzip.compress,
    ".txt.bz2": bz2.compress,
    ".txt.xz": lzma.compress,
}
"""Compression by the ending of a file's name."""


def decode(data: bytes) -> str | None:
    """Return the text of a file, or None if it is to be refused."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data:
        return None
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError:
        return None


def split_lines(content: str) -> list[str]:
    """Return lines with their ends, which are those that bytes have: `\\n`, `\\r\\n` and `\\r`."""
    return [line.decode() for line in content.encode().splitlines(keepends=True)]


def split_documents(content: str, kind: str) -> list[str]:
    """Return the documents of a text: lines or paragraphs that are not blank, or all of it."""
    if kind == "file":
        return [content]
    documents, paragraph = [], ""
    for line in [*split_lines(content), ""]:
        if line.strip():
            paragraph += line
        if paragraph and (kind == "line" or not line.strip()):
            documents.append(paragraph.rstrip("\r\n"))
            paragraph = ""
    return documents


def split_last_tenth(items: list[str]) -> tuple[list[str], list[str]] | None:
    """Return the items before the last tenth and the last tenth, which has one at least."""
    number = max(1, len(items) // 10)
    return (items[:-number], items[-number:]) if len(items) >= 2 else None


def expected_texts(contents: dict[str, str | None], fields: dict[str, Any]) -> Texts | None:
    """Return the text of files by split, or None if they are to be refused."""
    decoded = {name: content for name, content in contents.items() if content is not None}
    if len(decoded) < len(contents):
        return None
    kind = fields.get("documents")
    if kind is None and "max_documents" in fields:
        return None
    parts = {name: split_documents(t, kind) if kind else split_lines(t) for name, t in decoded.items()}
    limit = fields.get("max_documents")
    parts["train"] = parts["train"][:limit]
    splits = (parts["train"], parts["validation"]) if "validation" in parts else split_last_tenth(parts["train"])
    texts = None if splits is None else Texts(*splits, is_documents=kind is not None)
    return None if texts is None or texts.lacks_words else texts


def check(folder: Path, dataset: Path, texts: Texts | None, fields: dict[str, Any]) -> None:
    """Train on a dataset and compare tokens and losses; without texts, it must be refused."""
    trial = {"dataset": str(dataset), "learning_rate": LEARNING_RATE, "batch_size": 4, **fields}
    trial["max_train_tokens"] = trial["batch_size"] * (trial["context_length"] - 1)
    found = train(folder, **trial)
    if texts is None:
        assert isinstance(found, str), "expected a refusal"
        assert dataset.stem in found, f"the message does not name the file: {found}"
        return
    tokenizer = train_tokenizer(texts)
    if len(encode(tokenizer, texts.train, is_documents=texts.is_documents)) < trial["context_length"] - 1:
        assert isinstance(found, str) and "context_length" in found
        return
    assert_equal(found, expected_losses(trial, texts, tokenizer, load_nano(tokenizer), 0))
    assert isinstance(found, Losses)
    decoded = tokenizer.decode(found.validation_tokens, clean_up_tokenization_spaces=False)
    assert decoded == "".join(f"{part}{'<|endoftext|>' if texts.is_documents else ''}" for part in texts.validation)


@contextlib.contextmanager
def blocks_of(size: int) -> Iterator[None]:
    """Read files in blocks of this number of bytes, and tokenize in segments of 300 characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", size)
        patch.setattr(encoding, "SEGMENT_CHARACTERS", 300)
        yield


@fuzz(100)
@given(
    data=TEXT_BYTES,
    suffix=st.sampled_from(sorted(PACKERS)),
    fields=FIELDS,
    block=st.sampled_from([4, 7, 64, 2**20]),
)
def test_text_is_trained_on_as_it_is(data: bytes, suffix: str, fields: dict[str, Any], block: int) -> None:
    with temporary_folder() as folder, blocks_of(block):
        path = folder / f"data{suffix}"
        path.write_bytes(PACKERS[suffix](data))
        check(folder, path, expected_texts({"train": decode(data)}, fields), fields)


@fuzz(80)
@given(data=OTHER_BYTES, suffix=st.sampled_from(sorted(PACKERS)), fields=FIELDS)
def test_file_of_any_bytes_is_trained_on_as_it_is_or_refused(data: bytes, suffix: str, fields: dict[str, Any]) -> None:
    if decode(data) is None:  # no more of a file is read than max_documents needs
        fields = {name: value for name, value in fields.items() if name != "max_documents"}
    with temporary_folder() as folder, blocks_of(64):
        path = folder / f"data{suffix}"
        path.write_bytes(PACKERS[suffix](data))
        check(folder, path, expected_texts({"train": decode(data)}, fields), fields)


@fuzz(40)
@given(train_data=TEXT_BYTES, validation_data=st.one_of(*[TEXT_BYTES] * 8, OTHER_BYTES), fields=FIELDS)
def test_folder_of_text_is_trained_on_as_it_is_or_refused(
    train_data: bytes, validation_data: bytes, fields: dict[str, Any]
) -> None:
    with temporary_folder() as folder:
        dataset = folder / "data"
        dataset.mkdir()
        (dataset / "train.txt").write_bytes(train_data)
        (dataset / "validation.txt").write_bytes(validation_data)
        contents = {"train": decode(train_data), "validation": decode(validation_data)}
        check(folder, dataset, expected_texts(contents, fields), fields)


@fuzz(20)
@given(
    data=CONTENTS.map(str.encode), suffix=st.sampled_from([".txt.gz", ".txt.bz2", ".txt.xz"]), cut=st.integers(0, 80)
)
def test_damaged_compressed_file_is_refused(data: bytes, suffix: str, cut: int) -> None:
    with temporary_folder() as folder:
        packed = PACKERS[suffix](data)
        (folder / f"data{suffix}").write_bytes(packed[: max(0, len(packed) - 1 - cut)])
        assert isinstance(train(folder, dataset=str(folder / f"data{suffix}"), context_length=4), str)
