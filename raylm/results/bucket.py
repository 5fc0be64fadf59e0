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
from raylm.results.filesystems import CAUSES, HOPELESS, PATIENCE_MINUTES, filesystem, path_of
from raylm.results.storage import ELSEWHERE, Storage, in_use, is_alive_here, this_process

log = logging.getLogger(__name__)
T = TypeVar("T")

WAITS_SECONDS = (0.5, 1, 2, 4, 8, 16)
"""Between tries of what raylm asks: the file system itself does not repeat a refused read of a small file."""
CHUNK_BYTES = 64 * 2**20
HOLDERS = ".running"
"""Folder of the commands that use a results folder, a file each, written anew with each beat."""
BEAT_SECONDS = 15.0
SEND_SECONDS = 10.0
"""Between two times that a file is sent that is being added to."""
DEAD_AFTER_SECONDS = 90.0
"""A command of another machine without a beat for so long has died."""


@dataclass(frozen=True)
class Bucket(Storage):
    """A bucket, or a part of one."""

    place: str
    patient: bool = True
    """Whether it is waited for where it does not answer."""

    @cached_property
    def _filesystem(self) -> Any:
        return filesystem(self.place, patient=self.patient)

    def _at(self, name: str) -> str:
        return f"{path_of(self.place)}/{name}" if name else path_of(self.place)

    def _patiently(self, request: Callable[[], T]) -> T:
        """What a request gives, made again for as long as there is patience and hope.

        Raises:
            FileNotFoundError: at once.
            OSError: if there is no more of either.
        """
        deadline = time.monotonic() + (60 * PATIENCE_MINUTES if self.patient else 0)
        for wait in itertools.chain(WAITS_SECONDS, itertools.repeat(WAITS_SECONDS[-1])):
            try:
                return request()
            except FileNotFoundError:
                raise
            except OSError as error:
                if time.monotonic() + wait > deadline or any(code in str(error) for code in HOPELESS):
                    raise
            time.sleep(wait)
        raise AssertionError("unreachable: there is always another wait")

    def inside(self, name: str) -> Bucket:
        """A part of it."""
        return Bucket(f"{self.place}/{name}", self.patient)

    def reach(self) -> None:
        """Asks it for anything, without much patience.

        Raises:
            UserError: if it does not answer, or is not there.
        """
        bucket = path_of(self.place).split("/")[0]
        try:
            if self.hasty()._filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
                raise UserError(f"{self.place}: there is no bucket {bucket}; make it, or {ELSEWHERE}")
        except OSError as error:
            raise UserError(f"{self.place}: {self.explained(error)}; or {ELSEWHERE}") from None

    def hasty(self) -> Bucket:
        """The same, without much patience."""
        return Bucket(self.place, patient=False)

    def make(self) -> None:
        """Tries to write to it."""
        try:
            self.hasty().write(".writable", "")
            self.hasty().remove(".writable")
        except OSError as error:
            what = f"results cannot be written to {self.place}: {self.explained(error)}"
            raise UserError(f"{what}; {ELSEWHERE}") from None

    def entries(self, below: str = "", *, deep: bool = True) -> dict[str, int | None]:
        """What is in a folder, in one listing."""
        selector = fs.FileSelector(self._at(below), allow_not_found=True, recursive=deep)
        start = len(self._at("")) + 1
        found = self._patiently(lambda: self._filesystem.get_file_info(selector))
        return {one.path[start:]: one.size if one.type == fs.FileType.File else None for one in found}

    def read(self, name: str) -> str:
        """The text of a file."""

        def read() -> bytes:
            with self._filesystem.open_input_stream(self._at(name)) as stream:
                return bytes(stream.read())

        return self._patiently(read).decode()

    def write(self, name: str, text: str) -> None:
        """Writes a file: an object is whole or not there."""

        def write() -> None:
            with self._filesystem.open_output_stream(self._at(name)) as stream:
                stream.write(text.encode())

        self._patiently(write)

    @contextmanager
    def appended(self, name: str) -> Iterator[int]:
        """A descriptor of a file on this machine, which is sent as a whole now and then, and in the end."""
        with tempfile.TemporaryFile("a+b") as file:
            with contextlib.suppress(FileNotFoundError):
                file.write(self.read(name).encode())
                file.flush()
            finished = threading.Event()
            sending = threading.Thread(target=self._send, args=(file.fileno(), name, finished), daemon=True)
            sending.start()
            try:
                yield file.fileno()
            finally:
                finished.set()
                sending.join()

    def _send(self, descriptor: int, name: str, finished: threading.Event) -> None:
        """Writes a file anew whenever there is more in it, until it is finished."""
        hasty, sent, last = self.hasty(), 0, False
        while not last:
            last = finished.wait(SEND_SECONDS)
            size = os.fstat(descriptor).st_size
            if size > sent:
                with contextlib.suppress(OSError):  # the bucket is away; it may be back at the next try
                    hasty.write(name, os.pread(descriptor, size, 0).decode(errors="replace"))
                    sent = size

    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all that is below it."""

        def remove() -> None:
            is_folder = self._filesystem.get_file_info(self._at(name)).type == fs.FileType.Directory
            (self._filesystem.delete_dir if is_folder else self._filesystem.delete_file)(self._at(name))

        with contextlib.suppress(FileNotFoundError):
            self._patiently(remove)

    @contextmanager
    def local(self, folder: str) -> Iterator[Path]:
        """A copy of a folder."""
        with tempfile.TemporaryDirectory(prefix="raylm-") as copy:
            options = {"source_filesystem": self._filesystem, "chunk_size": CHUNK_BYTES}
            self._patiently(lambda: fs.copy_files(self._at(folder), copy, **options))
            yield Path(copy)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps a second command away: whoever finds another's beat going on gives way.

        Each writes its own file first and looks for others' then, so that of two at least one sees the other.
        """
        mine = f"{HOLDERS}/{uuid.uuid4().hex}"
        self.write(mine, this_process())
        try:
            self._outlive_others(mine)
            finished = threading.Event()
            beating = threading.Thread(target=self._beat, args=(mine, finished), daemon=True)
            beating.start()
            try:
                yield
            finally:
                finished.set()
                beating.join()
        finally:
            self.remove(mine)

    def _outlive_others(self, mine: str) -> None:
        """Returns when no other command is alive; the files of those that have died are removed.

        Raises:
            UserError: if one is alive.
        """
        first_beats, deadline = self._beats(mine), time.monotonic() + DEAD_AFTER_SECONDS
        while beats := self._beats(mine):
            for name, beat in beats.items():
                try:
                    holder = self.read(name)
                except FileNotFoundError:  # it has ended
                    continue
                alive = is_alive_here(holder)
                if alive or beat != first_beats.get(name):
                    raise in_use(self, holder)
                if alive is False or time.monotonic() > deadline:
                    self.remove(name)
            time.sleep(1)

    def _beats(self, mine: str) -> dict[str, Any]:
        """When the other commands' files were written, by the bucket's own clock."""
        selector = fs.FileSelector(self._at(HOLDERS), allow_not_found=True)
        listed = self._patiently(lambda: self._filesystem.get_file_info(selector))
        found = {f"{HOLDERS}/{one.base_name}": one.mtime_ns for one in listed}
        return {name: beat for name, beat in found.items() if name != mine}

    def _beat(self, mine: str, finished: threading.Event) -> None:
        """Shows that this command is alive, until it has finished or another has taken it for dead."""
        while not finished.wait(BEAT_SECONDS):
            try:
                self.read(mine)
                self.write(mine, this_process())
            except FileNotFoundError:
                log.error("another command has taken over %s, where nothing was heard of this one", self.place)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except OSError:
                continue  # the bucket is away; it may be back at the next beat

    def explained(self, error: OSError) -> str:
        """What went wrong, in a few words for the commonest causes, else in pyarrow's."""
        text = " ".join(str(error).split())
        return next((words for code, words in CAUSES.items() if code in text), text[:300])

    def free_bytes(self) -> None:
        """There is always room."""
        return

    def for_tune(self) -> tuple[str, Any]:
        """Its path and the file system."""
        return path_of(self.place), self._filesystem
