"""A checkpoint's witness: what it is and the sha256 of each of its files. Standard library only.

A folder whose manifest does not verify is no checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raylm.files import compute_sha256, write_text_atomic

MANIFEST_FILE = "manifest.json"
OPTIMIZER_FILE = "optimizer.safetensors"
"""The file that going on takes, and that using the model does not."""
FORMAT_VERSION = 1


def write(folder: Path, content: dict[str, Any]) -> None:
    """Hashes every file of a checkpoint and writes its manifest, the last of them."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": compute_sha256(path)}
        for path in _list_files(folder)
    }
    write_text_atomic(
        folder / MANIFEST_FILE,
        json.dumps({"version": FORMAT_VERSION, **content, "files": files}, indent=2, allow_nan=False),
    )


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)


def parse(text: str, sizes: Mapping[str, int | None]) -> dict[str, Any] | None:
    """A manifest's content, if all files that it names are there in their sizes; None: this is no checkpoint."""
    try:
        content = json.loads(text)
        whole = content["version"] == FORMAT_VERSION and all(
            sizes.get(name) == file["bytes"] for name, file in content["files"].items()
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return content if whole else None


def verify(folder: Path) -> dict[str, Any] | None:
    """The manifest, if every file has the content that it says; None: this is no checkpoint."""
    try:
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _list_files(folder)}
        content = parse((folder / MANIFEST_FILE).read_text(encoding="utf-8"), sizes)
        whole = content is not None and all(
            compute_sha256(folder / name) == file["sha256"] for name, file in content["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if whole else None
