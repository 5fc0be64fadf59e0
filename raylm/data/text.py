"""Text of a split: pieces that are read lazily, and the reading of text files."""

from __future__ import annotations

import codecs
import itertools
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import fsspec
import fsspec.utils

from raylm.config.dataset import strip_compression
from raylm.errors import UserError, one_line

T = TypeVar("T")

BLOCK_BYTES = 2**20
"""Bytes of a file that are read at a time."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""First bytes of files in other encodings; the longer ones first."""
ARCHIVE_SUFFIXES = (".zip", ".tar", ".7z", ".rar")
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
LINE_END, LINE_END_BYTES = re.compile(r"\r\n|\r|\n"), re.compile(rb"\r\n|\r|\n")
"""Line ends. Form feed, U+0085, U+2028 and others of `str.splitlines` are part of a line."""
OLD_LINE_ENDS = re.compile(rb"[\r\x0b\x0c\x1c-\x1e]|\xc2\x85|\xe2\x80[\xa8\xa9]")
"""UTF-8 of what ended a line, and was replaced by a line feed, before raylm 0.2."""

SPACELESS_LETTER = re.compile(
    "[\u0e00-\u0eff\u0f00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese."""


def spaceless_percent(text: str) -> int:
    """Return the percentage of the letters of a text that are of scripts without spaces between words."""
    letters = sum(map(str.isalpha, text))
    return round(100 * min(1.0, len(SPACELESS_LETTER.findall(text)) / letters)) if letters else 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a split's text: a document, or a part of a stream."""

    text: str
    num_words: int
    """Number of words of the original text, before cleaning."""
    num_bytes: int
    """Number of bytes of the original text in UTF-8."""

    @classmethod
    def from_text(cls, text: str) -> Piece:
        """Return a text that is not cleaned."""
        return cls(text, len(text.split()), len(text.encode("utf-8", "surrogatepass")))


@dataclass(frozen=True)
class Lazy(Generic[T]):
    """Items that are read anew by each iteration."""

    read: Callable[[], Iterable[T]]

    def __iter__(self) -> Iterator[T]:
        return iter(self.read())


@dataclass(frozen=True)
class TextSplit:
    """Text of one split."""

    texts: Iterable[Iterable[Piece]]
    """Documents, or a single stream, each in parts. Iterable several times."""
    is_documents: bool
    """True if the texts are documents, which are followed by the end-of-text token."""

    @property
    def pieces(self) -> Iterator[Piece]:
        """All parts of all texts."""
        return itertools.chain.from_iterable(self.texts)

    @classmethod
    def of_documents(cls, documents: Iterable[str]) -> TextSplit:
        """Return a split with a document per text. The texts must be iterable several times."""
        return cls(Lazy(lambda: ([Piece.from_text(text)] for text in documents)), is_documents=True)

    @classmethod
    def of_stream(cls, read: Callable[[], Iterable[Piece]]) -> TextSplit:
        """Return a split that is one stream.

        Args:
            read: reads its parts.
        """
        return cls([Lazy(read)], is_documents=False)


def last_tenth_start(number: int) -> int:
    """Return the index of the first of a number of items that is in their last tenth, which has one at least."""
    return number - max(1, number // 10)


# ---- text files ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextFile:
    """UTF-8 file, compressed or not, or the part of it between two bytes. A byte order mark is no text."""

    path: Path
    start: int = 0
    """First byte of the part, in the decompressed file."""
    end: int | None = None
    """Byte behind the part; None: the end of the file."""

    def read_blocks(self) -> Iterator[bytes]:
        """Yield the bytes of the part in blocks.

        Raises:
            UserError: if the file cannot be read or decompressed.
        """
        position = 0
        for block in _read_file(self.path):
            if self.end is not None and position >= self.end:
                return
            first = max(0, self.start - position)
            part = block[first : None if self.end is None else self.end - position]
            position += len(block)
            if part:
                yield part

    def read_text(self) -> Iterator[str]:
        """Yield the text of the part in blocks.

        Raises:
            UserError: if it is not UTF-8, or holds a NUL byte.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        position = self.start
        for block in self.read_blocks():
            yield self._decode(decoder, block, position)
            position += len(block)
        if tail := self._decode(decoder, b"", position, final=True):
            yield tail

    def _decode(self, decoder: Any, block: bytes, position: int, *, final: bool = False) -> str:
        if position == 0:
            size = len(block)
            block = self._strip_mark(block)
            position = size - len(block)
        pending = len(decoder.getstate()[0])
        try:
            text: str = decoder.decode(block, final)
        except UnicodeDecodeError as error:
            byte = position - pending + error.start
            raise UserError(f"dataset {self.path} is not UTF-8 text: byte {byte:,} is invalid") from None
        if "\0" in text:
            byte = position - pending + len(text[: text.index("\0")].encode())
            raise UserError(f"dataset {self.path} is not text: byte {byte:,} is NUL; expected UTF-8 text")
        return text

    def _strip_mark(self, block: bytes) -> bytes:
        """Return the first block without UTF-8's byte order mark.

        Raises:
            UserError: if it is compressed or in another encoding.
        """
        for mark, encoding in BYTE_ORDER_MARKS.items():
            if block.startswith(mark):
                advice = f"convert it, as by `iconv -f {encoding} -t UTF-8`"
                raise UserError(f"dataset {self.path} is {encoding}, expected UTF-8; {advice}")
        for magic, name, suffix in ((GZIP_MAGIC, "gzip", ".gz"), (ZSTD_MAGIC, "zstandard", ".zst")):
            if block.startswith(magic):
                raise UserError(f"dataset {self.path} is compressed with {name}; rename it to end in {suffix}")
        return block.removeprefix(codecs.BOM_UTF8)

    def iter_pieces(self) -> Iterator[Piece]:
        """Yield the text in blocks, the words that they divide counted once."""
        was_word = False
        for text in self.read_text():
            if text:
                piece = Piece.from_text(text)
                divides = was_word and not text[0].isspace()
                yield Piece(text, piece.num_words - divides, piece.num_bytes)
                was_word = not text[-1].isspace()

    def iter_lines(self) -> Iterator[str]:
        """Yield the lines with their ends."""
        begun: list[str] = []  # parts of the line that is not complete
        for block in self._read_whole_line_ends():
            start = 0
            for match in LINE_END.finditer(block):
                yield "".join([*begun, block[start : match.end()]])
                begun, start = [], match.end()
            if start < len(block):
                begun.append(block[start:])
        if begun:
            yield "".join(begun)

    def _read_whole_line_ends(self) -> Iterator[str]:
        """Yield the text in blocks that do not divide a carriage return from its line feed."""
        held = ""
        for text in self.read_text():
            block = held + text
            held = "\r" if block.endswith("\r") else ""
            yield block[: len(block) - len(held)]
        yield held

    def split_last_tenth(self) -> tuple[TextFile, TextFile]:
        """Return the part before and the part of the last tenth of the lines, at least one.

        Raises:
            UserError: if there are fewer than two lines.
        """
        next(self.read_text(), "")  # is it text at all
        number = sum(1 for _ in self._line_starts())
        if number < 2:
            found = "1 line" if number else "no lines"
            raise UserError(f"dataset {self.path} has {found}; expected at least 2: its last tenth is validation")
        first = last_tenth_start(number)
        byte = next(start for index, start in enumerate(self._line_starts()) if index == first)
        return TextFile(self.path, 0, byte), TextFile(self.path, byte)

    def _line_starts(self) -> Iterator[int]:
        """Yield the positions of the first bytes of lines."""
        position, carry, is_start = 0, b"", True
        for block in self.read_blocks():
            data = carry + block
            carry = b"\r" if data.endswith(b"\r") else b""  # its line feed may follow
            if is_start:
                yield position
            ends = [match.end() for match in LINE_END_BYTES.finditer(data, 0, len(data) - len(carry))]
            yield from (position + end for end in ends if end < len(data))
            is_start = bool(ends) and ends[-1] == len(data)
            position += len(data) - len(carry)


def _read_file(path: Path) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in blocks.

    Raises:
        UserError: if it cannot be read or decompressed.
    """
    check_compression(path)
    try:
        with fsspec.open(str(path), "rb", compression="infer") as opened:
            file: IO[bytes] = opened
            while block := file.read(BLOCK_BYTES):
                yield block
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"dataset {path} cannot be read: {getattr(error, 'strerror', None) or one_line(error)}"
        ) from error


def check_compression(path: Path) -> None:
    """Check that a file is not an archive, and that its compression can be read.

    Raises:
        UserError: if that does not hold.
    """
    name = path.name.lower()
    if strip_compression(name).endswith(ARCHIVE_SUFFIXES) or name.endswith(".tgz"):
        raise UserError(f"dataset {path} is an archive; unpack it into a folder, and name that")
    if name.endswith(".zst") and "zst" not in fsspec.utils.compressions:
        raise UserError(f"dataset {path} is compressed with zstandard; install its package: `pip install zstandard`")
