"""Search for secrets in files: plain, encoded in base64, compressed and in archives."""

from __future__ import annotations

import base64
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path


def find_files_with_secret(folder: Path, secret: str) -> list[Path]:
    """Return the files below a folder that contain a secret."""
    encodings = encode_secret(secret)
    return [
        path
        for path in list_files(folder)
        if any(encoded in content for content in unpack(path.read_bytes()) for encoded in encodings)
    ]


def list_files(folder: Path) -> list[Path]:
    """Return the files below a folder, without sockets and links."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]


def encode_secret(secret: str) -> list[bytes]:
    """Return the byte strings that a file with a secret can contain: plain, and base64 at each of three offsets."""
    encodings = [secret.encode()]
    for offset in range(3):
        encoded = base64.b64encode(b"x" * offset + secret.encode())
        independent = encoded[4 if offset else 0 : -4]  # characters that do not depend on adjacent bytes
        encodings += [independent, independent.replace(b"+", b"-").replace(b"/", b"_")]
    return encodings


def unpack(content: bytes, max_depth: int = 3) -> Iterator[bytes]:
    """Yield bytes and, if they are compressed or an archive, their contents."""
    yield content
    if max_depth and content[:2] == b"\x1f\x8b":
        yield from unpack(gzip.decompress(content), max_depth - 1)
    elif max_depth and content[:1] == b"\x78" and (inflated := _inflate(content)):
        yield from unpack(inflated, max_depth - 1)
    elif max_depth and zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield from unpack(archive.read(name), max_depth - 1)


def _inflate(content: bytes) -> bytes:
    try:
        return zlib.decompress(content)
    except zlib.error:
        return b""
