"""Cache of this machine: folders that are built once, and visible only when complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from raylm.errors import UserError, is_disk_full


def root_dir() -> Path:
    """Return the cache folder: `$RAYLM_CACHE`, else `raylm` in the user's cache folder."""
    if override := os.environ.get("RAYLM_CACHE"):
        return Path(override).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raylm"


def cache_dir(subfolder: str) -> Path:
    """Return a subfolder of the cache, created if missing.

    Raises:
        UserError: if it cannot be created.
    """
    folder = root_dir() / subfolder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"the cache {folder} cannot be created: {error.strerror}"
        raise UserError(f"{problem}; choose another folder with the environment variable RAYLM_CACHE") from None
    return folder


def get_or_build(subfolder: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return an entry of the cache, built now if missing.

    The entry is built in a temporary folder and then renamed, so that an incomplete one is never visible. If several
    processes need the same entry, one builds it and the others wait.

    Args:
        subfolder: subfolder of the cache.
        key: name of the entry, which must change with its content.
        build: function that writes all files into an empty folder.

    Raises:
        UserError: if the disk is full or the cache cannot be created.
    """
    folder = cache_dir(subfolder) / key
    if not folder.exists():
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                _build_folder(folder, build)
    return folder


def _build_folder(folder: Path, build: Callable[[Path], None]) -> None:
    for stale in folder.parent.glob(f".{folder.name}-*"):  # left by a process that died: this one holds the lock
        shutil.rmtree(stale)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        build(temporary)
        temporary.rename(folder)
    except OSError as error:
        if not is_disk_full(error):
            raise
        advice = "free some space, or choose another folder with the environment variable RAYLM_CACHE"
        raise UserError(f"the disk of the cache {root_dir()} is full; {advice}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
