"""Text files: UTF-8 reads, atomic writes, content hashes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


class UnreadableTextError(Exception):
    """File that cannot be read as text. The message continues a sentence that begins with the file's name."""


def read_utf8(path: Path, *, encoding: str = "utf-8") -> str:
    """Return the text of a UTF-8 file.

    Args:
        path: File to read.
        encoding: `utf-8`, or `utf-8-sig` to drop a byte order mark.

    Raises:
        UnreadableTextError: If the file is not UTF-8 or cannot be read.
    """
    try:
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise UnreadableTextError(f"is not UTF-8 text: byte {error.start} is invalid") from None
    except OSError as error:
        raise UnreadableTextError(f"cannot be read: {error.strerror}") from None


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 file completely or not at all: write a temporary file beside it, then rename that."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_private_file(path: Path, text: str) -> None:
    """Write a file that only its owner can read, completely or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)  # atomic: readers never see a part of it


def compute_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
