"""Storage backends of results: a directory, and the interface that it shares with a bucket (`results/bucket.py`).

Files have relative names with slashes: `launch-001/run/params.json`. Readers see a file completely written or not at
all.
"""

from __future__ import annotations

import abc
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raylm.errors import UserError
from raylm.files import write_text_atomic

T = TypeVar("T")
R = TypeVar("R")

MAX_DEPTH = 8
"""Maximum depth of listed folders: more than a results folder has, and few enough to end in circles of links."""
NO_PERMISSION = "permission denied; ask its owner for permission to read the results folder"
STORAGE_HINT = "choose another place with --storage"


class Storage(abc.ABC):
    """Storage backend of a results folder: a directory or a bucket."""

    uri: str
    """Path or URI, for messages."""

    @property
    def name(self) -> str:
        """Last part of the URI."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    def uri_of(self, name: str) -> str:
        """Return the path or URI of a file or folder, for messages."""
        return f"{self.uri}/{name}"

    @abc.abstractmethod
    def subfolder(self, name: str) -> Storage:
        """Return a folder in this storage as a storage of its own."""

    @abc.abstractmethod
    def create(self, advice: str = STORAGE_HINT) -> None:
        """Create the folder if it does not exist, and check that it is writable.

        Args:
            advice: end of the message if it is not writable.

        Raises:
            UserError: if it is not writable.
        """

    @abc.abstractmethod
    def list_entries(self, folder: str = "", *, recursive: bool = True) -> dict[str, int | None]:
        """Return what a folder contains by name: bytes of a file, None for a folder."""

    @abc.abstractmethod
    def read(self, name: str) -> str:
        """Return the text of a file.

        Raises:
            FileNotFoundError: if it does not exist.
            OSError: if it cannot be read.
            ValueError: if it is not UTF-8.
        """

    def map_reads(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the results of a function that reads files, in the order of the items.

        A disk is read by one thread; a bucket, which takes long to answer, by several.
        """
        return [function(item) for item in items]

    @abc.abstractmethod
    def write(self, name: str, text: str) -> None:
        """Write a file atomically; missing folders are created."""

    @abc.abstractmethod
    def open_append(self, name: str) -> AbstractContextManager[int]:
        """Open a file for appending and yield its descriptor; in a bucket, what is written appears with a delay."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its content. Targets of links are kept; a missing file is no error."""

    @abc.abstractmethod
    def local_copy(self, folder: str) -> AbstractContextManager[Path]:
        """Yield a local path with the files of a folder: the folder itself, or a temporary copy."""

    @abc.abstractmethod
    def free_bytes(self) -> int | None:
        """Return the free space, or None if it is unlimited."""

    @abc.abstractmethod
    def tune_storage(self) -> tuple[str, Any]:
        """Return path and pyarrow file system for Ray Tune; None as file system means the local one."""

    def without_retries(self) -> Storage:
        """Return the same storage with requests that fail soon if it does not respond."""
        return self

    def describe_error(self, error: OSError) -> str:
        """Return a short description of an error of this storage."""
        return error.strerror or str(error)

    def has_text(self, name: str, text: str) -> bool:
        """Return whether a file exists and has this text."""
        try:
            return self.read(name) == text
        except (OSError, ValueError):
            return False


@dataclass(frozen=True)
class Folder(Storage):
    """Directory of this machine, or one that is shared by all nodes of a cluster."""

    path: Path

    @property
    def uri(self) -> str:  # type: ignore[override]
        """Path of the directory."""
        return str(self.path)

    def subfolder(self, name: str) -> Folder:
        """Return a subdirectory."""
        return Folder(self.path / name)

    def create(self, advice: str = STORAGE_HINT) -> None:
        """Create the directory if it does not exist, and check that it is writable."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write(".writable", "")
            self.remove(".writable")
        except OSError as error:
            raise UserError(f"results cannot be written to {self.path}: {error.strerror}; {advice}") from None

    def list_entries(self, folder: str = "", *, recursive: bool = True) -> dict[str, int | None]:
        """Return the content of a folder; links are followed.

        Raises:
            UserError: if this user may not read it. Without it, finished rows would look unfinished.
        """
        entries: dict[str, int | None] = {}

        def scan(path: Path, prefix: str, depth: int) -> None:
            try:
                children = sorted(os.scandir(path), key=lambda child: child.name)
            except PermissionError:
                raise UserError(f"{path} cannot be read: {NO_PERMISSION}") from None
            except (OSError, ValueError):  # missing, not a folder, or not a valid name
                return
            for child in children:
                try:
                    is_folder = child.is_dir()
                    entries[prefix + child.name] = None if is_folder else child.stat().st_size
                except OSError:  # removed meanwhile, or a broken link
                    continue
                if is_folder and depth > 1:
                    scan(Path(child.path), f"{prefix}{child.name}/", depth - 1)

        scan(self.path / folder, f"{folder}/" if folder else "", MAX_DEPTH if recursive else 1)
        return entries

    def read(self, name: str) -> str:
        """Return the text of a file."""
        return (self.path / name).read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> None:
        """Write a file atomically."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(self.path / name, text)

    @contextmanager
    def open_append(self, name: str) -> Iterator[int]:
        """Open the file itself for appending."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def remove(self, name: str) -> None:
        """Remove a file or folder, unless it is a link or below one."""
        path = self.path / name
        if path.is_symlink() or path.resolve() != self.path.resolve() / name:
            return
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def local_copy(self, folder: str) -> Iterator[Path]:
        """Yield the folder itself."""
        yield self.path / folder

    def free_bytes(self) -> int:
        """Return the free space of the disk."""
        return shutil.disk_usage(self.path).free

    def tune_storage(self) -> tuple[str, Any]:
        """Return the absolute path."""
        return str(self.path.resolve()), None
