"""The cache on this machine: folders that are made once, whole, by whichever process comes first."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from raylm.errors import UserError, is_disk_full


def root_dir() -> Path:
    """Where raylm keeps what it prepares: `$RAYLM_CACHE`, else `raylm` in the user's cache folder."""
    if given := os.environ.get("RAYLM_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raylm"


def cache_dir(subfolder: str) -> Path:
    """A part of the cache, made where it is missing.

    Raises:
        UserError: if it cannot be made.
    """
    folder = root_dir() / subfolder
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"the cache {folder} cannot be made: {error.strerror}"
        raise UserError(f"{what}; choose another place with the environment variable RAYLM_CACHE") from None
    return folder


def get_or_build(subfolder: str, key: str, build: Callable[[Path], None]) -> Path:
    """A folder of a part of the cache; built beside its place and renamed there, so that it is whole or not there.

    Args:
        key: the folder's name, which changes with what is in it.
        build: writes all of it into an empty folder; of several processes one does, and the others wait.

    Raises:
        UserError: if the disk is full, or the cache cannot be made.
    """
    folder = cache_dir(subfolder) / key
    if not folder.exists():
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                _build_folder(folder, build)
    return folder


def _build_folder(folder: Path, build: Callable[[Path], None]) -> None:
    for left_over in folder.parent.glob(f".{folder.name}-*"):  # of a process that died: this one has the lock
        shutil.rmtree(left_over)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        build(building)
        building.rename(folder)
    except OSError as error:
        if not is_disk_full(error):
            raise
        advice = "free some space, or choose another place with the environment variable RAYLM_CACHE"
        raise UserError(f"the disk of the cache {root_dir()} is full; {advice}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
