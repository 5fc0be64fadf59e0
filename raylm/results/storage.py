"""Where results are kept: a folder, or a bucket (s3://, gs://). The few things that raylm asks of either of them.

Files have names that are relative and have slashes between their parts: `launch-001/run/params.json`. A file is whole
or not there.
"""

from __future__ import annotations

import abc
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from raylm.errors import UserError
from raylm.files import write_text_atomic

MAX_DEPTH = 8
"""Levels of folders that are looked through: more than a results folder has, fewer than links that lead in circles."""
STORAGE_HINT = "choose another place with --storage"
LOCK_OWNER_FILE = ".running"


class Storage(abc.ABC):
    """Files by their names, in a place of which a sweep has a part of its own: its results folder."""

    uri: str
    """What a user calls it: a path, or a URI."""

    @property
    def name(self) -> str:
        """The last part of the place."""
        return self.uri.rstrip("/").rsplit("/", 1)[-1]

    def uri_of(self, name: str) -> str:
        """What a user calls a file or folder in it."""
        return f"{self.uri}/{name}"

    @abc.abstractmethod
    def subfolder(self, name: str) -> Storage:
        """A folder in it as a storage of its own."""

    @abc.abstractmethod
    def create(self) -> None:
        """Makes it where it is missing, and tries to write to it.

        Raises:
            UserError: if it cannot be written to.
        """

    @abc.abstractmethod
    def list_entries(self, folder: str = "", *, recursive: bool = True) -> dict[str, int | None]:
        """What is in a folder, or anywhere below it: the bytes of each file, None for a folder."""

    @abc.abstractmethod
    def read(self, name: str) -> str:
        """The text of a file.

        Raises:
            FileNotFoundError: if there is none.
            OSError, ValueError: if it cannot be read, or is no text.
        """

    @abc.abstractmethod
    def write(self, name: str, text: str) -> None:
        """Writes a file whole or not at all, with the folders that it is in."""

    @abc.abstractmethod
    def open_append(self, name: str) -> AbstractContextManager[int]:
        """A descriptor; what is written to it is added to a file, at once or soon."""

    @abc.abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all that is below it; what a link leads to is left."""

    @abc.abstractmethod
    def local_copy(self, folder: str) -> AbstractContextManager[Path]:
        """A folder's files on this machine: the folder itself, or a copy that is removed in the end."""

    @abc.abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Keeps a second command away from it.

        Raises:
            UserError: naming the command that has it.
        """

    @abc.abstractmethod
    def free_bytes(self) -> int | None:
        """Room that is left; None where there is no limit to speak of."""

    def without_retries(self) -> Storage:
        """The same, for a first look: without patience where it does not answer."""
        return self

    def describe_error(self, error: OSError) -> str:
        """What went wrong with it, in a few words."""
        return error.strerror or str(error)

    @abc.abstractmethod
    def tune_storage(self) -> tuple[str, Any]:
        """What Ray Tune takes for it: a path and pyarrow's file system that it is in, None being this machine's."""

    def has_text(self, name: str, text: str) -> bool:
        """Whether a file has this text."""
        try:
            return self.read(name) == text
        except (OSError, ValueError):
            return False


@dataclass(frozen=True)
class Folder(Storage):
    """A folder of this machine, or one that all nodes of a cluster share."""

    path: Path

    @property
    def uri(self) -> str:  # type: ignore[override]
        """Its path."""
        return str(self.path)

    def subfolder(self, name: str) -> Folder:
        """A folder in it."""
        return Folder(self.path / name)

    def create(self) -> None:
        """Makes it where it is missing, and tries to write to it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.write(".writable", "")
            self.remove(".writable")
        except OSError as error:
            raise UserError(f"results cannot be written to {self.path}: {error.strerror}; {STORAGE_HINT}") from None

    def list_entries(self, folder: str = "", *, recursive: bool = True) -> dict[str, int | None]:
        """What is in a folder; links are followed."""
        found: dict[str, int | None] = {}

        def scan(path: Path, prefix: str, depth: int) -> None:
            try:
                entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            except (OSError, ValueError):  # none, not a folder, not ours to read, a name that no folder can have
                return
            for entry in entries:
                try:
                    is_folder = entry.is_dir()
                    found[prefix + entry.name] = None if is_folder else entry.stat().st_size
                except OSError:  # it went away, or is a link to nothing
                    continue
                if is_folder and depth > 1:
                    scan(Path(entry.path), f"{prefix}{entry.name}/", depth - 1)

        scan(self.path / folder, f"{folder}/" if folder else "", MAX_DEPTH if recursive else 1)
        return found

    def read(self, name: str) -> str:
        """The text of a file."""
        return (self.path / name).read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> None:
        """Writes a file whole or not at all."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_text_atomic(self.path / name, text)

    @contextmanager
    def open_append(self, name: str) -> Iterator[int]:
        """A descriptor of the file itself."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def remove(self, name: str) -> None:
        """Removes a file or folder, if no link leads there."""
        path = self.path / name
        if path.is_symlink() or path.resolve() != self.path.resolve() / name:
            return
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def local_copy(self, folder: str) -> Iterator[Path]:
        """The folder itself."""
        yield self.path / folder

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second command away, by a lock that the operating system takes back from one that dies."""
        from filelock import FileLock, Timeout

        try:
            lock = FileLock(self.path / ".lock").acquire(timeout=0)
        except Timeout:
            raise locked_error(
                self, self.read(LOCK_OWNER_FILE) if (self.path / LOCK_OWNER_FILE).exists() else "{}"
            ) from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be locked: {error.strerror}; {STORAGE_HINT}") from None
        with lock:
            self.write(LOCK_OWNER_FILE, process_identity())
            try:
                yield
            finally:
                self.remove(LOCK_OWNER_FILE)

    def free_bytes(self) -> int:
        """Room on its disk."""
        return shutil.disk_usage(self.path).free

    def tune_storage(self) -> tuple[str, Any]:
        """Its path."""
        return str(self.path.resolve()), None


# ---- who holds it -------------------------------------------------------------------------------------------------


def process_identity() -> str:
    """What tells this process from all others, for whom it keeps away."""
    since = psutil.Process().create_time()
    return json.dumps({"process": os.getpid(), "host": platform.node(), "since": since})


def is_process_alive(owner: str) -> bool | None:
    """Whether a process that `this_process` told of runs on this machine; None where it was on another, or unknown."""
    told = _parse_owner(owner)
    if told.get("host") != platform.node():
        return None
    try:
        return bool(abs(psutil.Process(told["process"]).create_time() - told["since"]) < 1)
    except psutil.NoSuchProcess:
        return False
    except (KeyError, TypeError, ValueError):
        return None


def locked_error(storage: Storage, owner: str) -> UserError:
    """The error of a second command on one results folder."""
    told = _parse_owner(owner)
    who = f"process {told['process']} on {told['host']}" if {"process", "host"} <= told.keys() else "another process"
    return UserError(f"{storage.uri} is in use by {who}; wait for it, or {STORAGE_HINT}")


def _parse_owner(owner: str) -> dict[str, Any]:
    try:
        told = json.loads(owner)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
