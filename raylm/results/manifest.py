"""manifest.json: identity, progress and file hashes of a checkpoint.

A checkpoint counts only if its manifest, which is written last, agrees with its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raylm.config.trial import TrialConfig
from raylm.files import compute_sha256, write_text_atomic
from raylm.results import json_files
from raylm.results.json_files import DamagedFileError
from raylm.results.progress import Progress

MANIFEST_FILE = "manifest.json"
OPTIMIZER_FILE = "optimizer.safetensors"
"""File that resuming needs and using the model does not."""
FORMAT_VERSION: Literal[1] = 1


@dataclass(frozen=True)
class FileRecord:
    """Size and content hash of a file."""

    bytes: int
    sha256: str
    """Hexadecimal digits."""


@dataclass(frozen=True)
class Manifest:
    """Content of manifest.json."""

    version: Literal[1]
    trial_id: str
    config: dict[str, Any]
    """Fields of the trial."""
    progress: Progress
    files: dict[str, FileRecord]
    """Files of the checkpoint by name, without the manifest."""

    @property
    def weights_hash(self) -> str:
        """Hashes of the weight files in the order of their names, joined by hyphens."""
        names = (name for name in self.files if name.startswith("model") and name.endswith(".safetensors"))
        return "-".join(self.files[name].sha256 for name in sorted(names))


def write(folder: Path, trial: TrialConfig, progress: Progress) -> None:
    """Hash every file of a checkpoint and write its manifest."""
    files = {
        path.relative_to(folder).as_posix(): FileRecord(path.stat().st_size, compute_sha256(path))
        for path in _list_files(folder)
    }
    content = Manifest(FORMAT_VERSION, trial.id, trial.as_record(), progress, files)
    write_text_atomic(folder / MANIFEST_FILE, json_files.encode(content))


def _list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)


def parse(text: str, sizes: Mapping[str, int | None]) -> Manifest | None:
    """Return a manifest if it can be read and all its files exist in their sizes, else None.

    Args:
        sizes: bytes of each file of the checkpoint, by name.
    """
    try:
        manifest = json_files.decode(text, Manifest)
    except DamagedFileError:
        return None
    return manifest if all(sizes.get(name) == file.bytes for name, file in manifest.files.items()) else None


def verify(folder: Path) -> Manifest | None:
    """Return the manifest of a checkpoint if the content of every file has the recorded hash, else None."""
    try:
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _list_files(folder)}
        manifest = parse((folder / MANIFEST_FILE).read_text(encoding="utf-8"), sizes)
        if manifest and all(compute_sha256(folder / name) == file.sha256 for name, file in manifest.files.items()):
            return manifest
    except (OSError, ValueError):  # a file is missing or unreadable, a name is not valid, the text is not UTF-8
        return None
    return None
