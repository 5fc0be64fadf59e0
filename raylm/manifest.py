"""A checkpoint's witness: what it is and the sha256 of each of its files. Standard library only.

A folder whose manifest does not verify is no checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
"""The file that going on takes, and that using the model does not."""
VERSION = 1


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all: beside its place, then renamed there."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write(folder: Path, content: dict[str, Any]) -> None:
    """Hashes every file of a checkpoint and writes its manifest, the last of them."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in _files(folder)
    }
    write_text(folder / NAME, json.dumps({"version": VERSION, **content, "files": files}, indent=2, allow_nan=False))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)


def parsed(text: str, sizes: Mapping[str, int | None]) -> dict[str, Any] | None:
    """A manifest's content, if all files that it names are there in their sizes; None: this is no checkpoint."""
    try:
        content = json.loads(text)
        whole = content["version"] == VERSION and all(
            sizes.get(name) == file["bytes"] for name, file in content["files"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return content if whole else None


def verify(folder: Path) -> dict[str, Any] | None:
    """The manifest, if every file has the content that it says; None: this is no checkpoint."""
    try:
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
        content = parsed((folder / NAME).read_text(encoding="utf-8"), sizes)
        whole = content is not None and all(
            sha256(folder / name) == file["sha256"] for name, file in content["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if whole else None


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
