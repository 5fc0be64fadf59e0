"""Files: UTF-8 reads, atomic writes, content hashes, locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNSUPPORTED_LOCK_ERRORS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
"""Numbers of errors with which `flock` fails where locks are not supported."""
WORKING_FOLDER_GONE = "the working folder no longer exists; change to one that does, as by `cd`"


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
    """Write a UTF-8 file completely or not at all: write a temporary file beside it, then rename that.

    Raises:
        OSError: if it cannot be written; its filename is that of the file, not of the temporary one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None
        raise
    finally:
        with suppress(OSError):  # it may not have been created
            temporary.unlink(missing_ok=True)


def is_working_folder_gone() -> bool:
    """Return whether the working folder has been removed: relative paths have no meaning then."""
    try:
        os.getcwd()  # noqa: PTH109 (Path.cwd is the same)
    except OSError:
        return True
    return False


def write_private_file(path: Path, text: str) -> None:
    """Write a file that only its owner can read, completely or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)  # atomic: readers never see a part of it


class LocksUnsupportedError(OSError):
    """File system without locks, as some network file systems are."""


@contextmanager
def lock_file(path: Path, *, wait: bool) -> Iterator[None]:
    """Lock a file, which is created if missing. The lock ends with the context or the process.

    Args:
        path: File to lock; its content stays.
        wait: Wait while another process has the lock.

    Raises:
        BlockingIOError: If another process has the lock and `wait` is false.
        LocksUnsupportedError: If the file system has no locks.
        OSError: If the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in UNSUPPORTED_LOCK_ERRORS:
                raise LocksUnsupportedError(error.errno, os.strerror(error.errno), str(path)) from None
            raise
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile has the descriptor too
    finally:
        os.close(descriptor)


def compute_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
