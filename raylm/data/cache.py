"""Cache of this machine: folders that are built once, and visible only when complete."""

from __future__ import annotations

import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from raylm.errors import NO_HOME, UserError, describe_full_disk, is_disk_full, is_file_limit, is_not_writable
from raylm.files import LocksUnsupportedError, lock_file

log = logging.getLogger(__name__)

ADVICE = "choose another folder with the environment variable RAYLM_CACHE"


def root_dir() -> Path:
    """Return the cache folder: `$RAYLM_CACHE`, else `raylm` in the user's cache folder.

    Raises:
        UserError: if it is in the home of a user who has none, or does not exist.
    """
    override = os.environ.get("RAYLM_CACHE")
    try:
        if override:
            return Path(override).expanduser().absolute()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "raylm"
    except RuntimeError:
        name = str(override).partition("/")[0]
        if override and name != "~":
            raise UserError(f"RAYLM_CACHE is {override}: there is no user {name[1:]!r} on this machine") from None
        raise UserError(f"{NO_HOME}, or RAYLM_CACHE") from None


def find_problem() -> str | None:
    """Return why the cache cannot be written, or None if it can; it is created if missing."""
    try:
        with tempfile.TemporaryFile(dir=cache_dir("")):
            return None
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"cannot be written: {error.strerror}; {ADVICE}"


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
        raise UserError(f"{problem}; {ADVICE}") from None
    return folder


def find_entry(subfolder: str, key: str) -> Path | None:
    """Return an entry of the cache, or None if it is not there or this user may not look for it."""
    return next(iter(find_files(subfolder, glob.escape(key))), None)


def find_files(subfolder: str, pattern: str) -> list[Path]:
    """Return the files and folders of a subfolder of the cache that match a pattern, none of a cache that is closed."""
    try:
        return list((root_dir() / subfolder).glob(pattern))
    except PermissionError:
        return []


def get_or_build(subfolder: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return an entry of the cache, built now if missing.

    The entry is built in a temporary folder and then renamed, so that an incomplete one is never visible. If several
    processes need the same entry, one builds it and the others wait; on a file system without locks each builds it.
    An entry that exists is also found in a cache that cannot be written.

    Args:
        subfolder: subfolder of the cache.
        key: name of the entry, which must change with its content.
        build: function that writes all files into an empty folder.

    Raises:
        UserError: if the disk is full, or the cache cannot be created or written.
    """
    folder = cache_dir(subfolder) / key
    with _explain_access(folder.parent):
        if folder.exists():
            return folder
        with ExitStack() as stack:
            try:
                stack.enter_context(lock_file(folder.with_suffix(".lock"), wait=True))
                for stale in folder.parent.glob(f".{folder.name}-*"):  # of a process that died: it held the lock
                    shutil.rmtree(stale)
            except LocksUnsupportedError:
                log.info("%s has no locks: %s is built without one", folder.parent, key)
            if not folder.exists():
                _build_folder(folder, build)
    return folder


@contextmanager
def _explain_access(folder: Path) -> Iterator[None]:
    """Raise a UserError for an error about access to a file of a folder of the cache."""
    try:
        yield
    except OSError as error:
        name = str(error.filename or "")
        if not is_not_writable(error) or not Path(name).is_relative_to(folder):
            raise
        raise UserError(f"the cache {folder} cannot be used: {error.strerror} ({name}); {ADVICE}") from error


def _build_folder(folder: Path, build: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        build(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # else another process has built it, without a lock
                raise
    except OSError as error:
        if not is_disk_full(error):
            raise
        cause, advice = describe_full_disk(error)
        problem = cause if is_file_limit(error) else f"the disk of the cache {root_dir()} is full"
        raise UserError(f"{problem}; {advice}, or {ADVICE}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
