"""WikiText: its rows in their original spelling."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from raylm.data.text import Piece, TextSplit

ROWS_PER_PIECE = 1_000

_RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r" @([-,.])@ ", r"\1"),  # 1 @,@ 000, well @-@ known
        (r"(?<==) (?==)", ""),  # = = Heading = =
        (r" '(s|t|re|ve|ll|d|m)\b", r"'\1"),  # it 's, don 't
        (r"(?<=s) '(?= |$)", "'"),  # the lobsters ' claws
        (r'" ([^"]*?) ?"', r'"\1"'),  # " quoted "
        (r"(?<= )' ([^']*?) '", r"'\1'"),  # ' quoted '
        (r"([(\[{]) ", r"\1"),
        (r" (?=[)\]}.,;:!?%])", ""),
        (r"([$£€#]) (?=\d)", r"\1"),
        (r" (?=[°′″])", ""),
    ]
]


def build_split(rows: Iterable[str]) -> TextSplit:
    """Return the detokenized rows as one stream, each followed by a line feed. The rows must be iterable several times.

    WikiText counts one word (`<eos>`) per line in addition to those between white space: 217,646 in its validation
    split. Its bytes are those of its rows.
    """
    return TextSplit.of_stream(lambda: _iter_pieces(rows))


def _iter_pieces(rows: Iterable[str]) -> Iterator[Piece]:
    lines: list[str] = []
    words = num_bytes = 0
    for row in rows:
        lines.append(detokenize(row) + "\n")
        words += len(row.split()) + 1
        num_bytes += len(row.encode())
        if len(lines) == ROWS_PER_PIECE:
            yield Piece("".join(lines), words, num_bytes)
            lines, words, num_bytes = [], 0, 0
    if lines:
        yield Piece("".join(lines), words, num_bytes)


def detokenize(row: str) -> str:
    """Return a row of the tokenized WikiText in its original spelling, as far as rules restore it; `<unk>` stays."""
    text = row.strip()
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
