"""A bucket as storage, with patience for one that is slow, busy or away."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from raylm.errors import UserError
from raylm.results.filesystems import ERROR_MESSAGES, PERMANENT_ERRORS, RETRY_MINUTES, open_filesystem, strip_scheme
from raylm.results.storage import STORAGE_HINT, Storage, is_process_alive, locked_error, process_identity

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_DELAYS_SECONDS = (0.5, 1, 2, 4, 8, 16)
"""Between tries of what raylm asks: the file system itself does not repeat a refused read of a small file."""
CHUNK_BYTES = 64 * 2**20
LOCK_FOLDER = ".running"
"""Folder of the commands that use a results folder, a file each, written anew with each beat."""
HEARTBEAT_SECONDS = 15.0
UPLOAD_SECONDS = 10.0
"""Between two times that a file is sent that is being added to."""
DEAD_AFTER_SECONDS = 90.0
"""A command of another machine without a beat for so long has died."""


@dataclass(frozen=True)
class Bucket(Storage):
    """A bucket, or a part of one."""

    uri: str
    retries: bool = True
    """Whether it is waited for where it does not answer."""

    @cached_property
    def _filesystem(self) -> Any:
        return open_filesystem(self.uri, retries=self.retries)

    def _path_to(self, name: str) -> str:
        return f"{strip_scheme(self.uri)}/{name}" if name else strip_scheme(self.uri)

    def _with_retries(self, request: Callable[[], T]) -> T:
        """What a request gives, made again for as long as there is patience and hope.

        Raises:
            FileNotFoundError: at once.
            OSError: if there is no more of either.
        """
        deadline = time.monotonic() + (60 * RETRY_MINUTES if self.retries else 0)
        for wait in itertools.chain(RETRY_DELAYS_SECONDS, itertools.repeat(RETRY_DELAYS_SECONDS[-1])):
            try:
                return request()
            except FileNotFoundError:
                raise
            except OSError as error:
                if time.monotonic() + wait > deadline or any(code in str(error) for code in PERMANENT_ERRORS):
                    raise
            time.sleep(wait)
        raise AssertionError("unreachable: there is always another wait")

    def subfolder(self, name: str) -> Bucket:
        """A part of it."""
        return Bucket(f"{self.uri}/{name}", self.retries)

    def check_access(self) -> None:
        """Asks it for anything, without much patience.

        Raises:
            UserError: if it does not answer, or is not there.
        """
        bucket = strip_scheme(self.uri).split("/")[0]
        try:
            if self.without_retries()._filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
                raise UserError(f"{self.uri}: there is no bucket {bucket}; make it, or {STORAGE_HINT}")
        except OSError as error:
            raise UserError(f"{self.uri}: {self.describe_error(error)}; or {STORAGE_HINT}") from None

    def without_retries(self) -> Bucket:
        """The same, without much patience."""
        return Bucket(self.uri, retries=False)

    def create(self) -> None:
        """Tries to write to it."""
        try:
            self.without_retries().write(".writable", "")
            self.without_retries().remove(".writable")
        except OSError as error:
            what = f"results cannot be written to {self.uri}: {self.describe_error(error)}"
            raise UserError(f"{what}; {STORAGE_HINT}") from None

    def list_entries(self, folder: str = "", *, recursive: bool = True) -> dict[str, int | None]:
        """What is in a folder, in one listing."""
        selector = fs.FileSelector(self._path_to(folder), allow_not_found=True, recursive=recursive)
        start = len(self._path_to("")) + 1
        found = self._with_retries(lambda: self._filesystem.get_file_info(selector))
        return {one.path[start:]: one.size if one.type == fs.FileType.File else None for one in found}

    def read(self, name: str) -> str:
        """The text of a file."""

        def read() -> bytes:
            with self._filesystem.open_input_stream(self._path_to(name)) as stream:
                return bytes(stream.read())

        return self._with_retries(read).decode()

    def write(self, name: str, text: str) -> None:
        """Writes a file: an object is whole or not there."""

        def write() -> None:
            with self._filesystem.open_output_stream(self._path_to(name)) as stream:
                stream.write(text.encode())

        self._with_retries(write)

    @contextmanager
    def open_append(self, name: str) -> Iterator[int]:
        """A descriptor of a file on this machine, which is sent as a whole now and then, and in the end."""
        with tempfile.TemporaryFile("a+b") as file:
            with contextlib.suppress(FileNotFoundError):
                file.write(self.read(name).encode())
                file.flush()
            finished = threading.Event()
            sending = threading.Thread(target=self._upload_loop, args=(file.fileno(), name, finished), daemon=True)
            sending.start()
            try:
                yield file.fileno()
            finally:
                finished.set()
                sending.join()

    def _upload_loop(self, descriptor: int, name: str, stop_event: threading.Event) -> None:
        """Writes a file anew whenever there is more in it, until it is finished."""
        hasty, sent, last = self.without_retries(), 0, False
        while not last:
            last = stop_event.wait(UPLOAD_SECONDS)
            size = os.fstat(descriptor).st_size
            if size > sent:
                with contextlib.suppress(OSError):  # the bucket is away; it may be back at the next try
                    hasty.write(name, os.pread(descriptor, size, 0).decode(errors="replace"))
                    sent = size

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all that is below it."""

        def remove() -> None:
            is_folder = self._filesystem.get_file_info(self._path_to(name)).type == fs.FileType.Directory
            (self._filesystem.delete_dir if is_folder else self._filesystem.delete_file)(self._path_to(name))

        with contextlib.suppress(FileNotFoundError):
            self._with_retries(remove)

    @contextmanager
    def local_copy(self, folder: str) -> Iterator[Path]:
        """A copy of a folder."""
        with tempfile.TemporaryDirectory(prefix="raylm-") as copy:
            options = {"source_filesystem": self._filesystem, "chunk_size": CHUNK_BYTES}
            self._with_retries(lambda: fs.copy_files(self._path_to(folder), copy, **options))
            yield Path(copy)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second command away: whoever finds another's beat going on gives way.

        Each writes its own file first and looks for others' then, so that of two at least one sees the other.
        """
        mine = f"{LOCK_FOLDER}/{uuid.uuid4().hex}"
        self.write(mine, process_identity())
        try:
            self._wait_for_stale_locks(mine)
            finished = threading.Event()
            beating = threading.Thread(target=self._heartbeat_loop, args=(mine, finished), daemon=True)
            beating.start()
            try:
                yield
            finally:
                finished.set()
                beating.join()
        finally:
            self.remove(mine)

    def _wait_for_stale_locks(self, lock_name: str) -> None:
        """Returns when no other command is alive; the files of those that have died are removed.

        Raises:
            UserError: if one is alive.
        """
        first_beats, deadline = self._list_heartbeats(lock_name), time.monotonic() + DEAD_AFTER_SECONDS
        while beats := self._list_heartbeats(lock_name):
            for name, beat in beats.items():
                try:
                    holder = self.read(name)
                except FileNotFoundError:  # it has ended
                    continue
                alive = is_process_alive(holder)
                if alive or beat != first_beats.get(name):
                    raise locked_error(self, holder)
                if alive is False or time.monotonic() > deadline:
                    self.remove(name)
            time.sleep(1)

    def _list_heartbeats(self, lock_name: str) -> dict[str, Any]:
        """When the other commands' files were written, by the bucket's own clock."""
        selector = fs.FileSelector(self._path_to(LOCK_FOLDER), allow_not_found=True)
        listed = self._with_retries(lambda: self._filesystem.get_file_info(selector))
        found = {f"{LOCK_FOLDER}/{one.base_name}": one.mtime_ns for one in listed}
        return {name: beat for name, beat in found.items() if name != lock_name}

    def _heartbeat_loop(self, lock_name: str, stop_event: threading.Event) -> None:
        """Shows that this command is alive, until it has finished or another has taken it for dead."""
        while not stop_event.wait(HEARTBEAT_SECONDS):
            try:
                self.read(lock_name)
                self.write(lock_name, process_identity())
            except FileNotFoundError:
                log.error("another command has taken over %s, where nothing was heard of this one", self.uri)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except OSError:
                continue  # the bucket is away; it may be back at the next beat

    def describe_error(self, error: OSError) -> str:
        """What went wrong, in a few words for the commonest causes, else in pyarrow's."""
        text = " ".join(str(error).split())
        return next((words for code, words in ERROR_MESSAGES.items() if code in text), text[:300])

    def free_bytes(self) -> None:
        """There is always room."""
        return

    def tune_storage(self) -> tuple[str, Any]:
        """Its path and the file system."""
        return strip_scheme(self.uri), self._filesystem
