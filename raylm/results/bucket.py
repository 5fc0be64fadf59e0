"""Bucket as storage: requests are retried while the bucket is slow, busy or unreachable."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs

from raylm.errors import UserError
from raylm.results.filesystems import ERROR_MESSAGES, PERMANENT_ERRORS, RETRY_MINUTES, open_filesystem, strip_scheme
from raylm.results.storage import STORAGE_HINT, Storage

T = TypeVar("T")
R = TypeVar("R")

RETRY_DELAYS_SECONDS = (0.5, 1, 2, 4, 8, 16)
"""Delays between retries; pyarrow itself does not retry a refused read of a small file."""
READ_THREADS = 16
"""Concurrent reads of small files."""
CHUNK_BYTES = 64 * 2**20
UPLOAD_SECONDS = 10.0
"""Interval between uploads of a file that is being appended to."""
MAX_MESSAGE_CHARS = 300
MAX_REPLACED_READS = 5
"""Times that a file is read again because it was replaced while it was read."""


@dataclass(frozen=True)
class Bucket(Storage):
    """Bucket, or a folder in one."""

    uri: str
    retries: bool = True
    """False: requests fail soon if the bucket does not respond."""

    @cached_property
    def _filesystem(self) -> Any:
        return open_filesystem(self.uri, retries=self.retries)

    def _path_to(self, name: str) -> str:
        return f"{strip_scheme(self.uri)}/{name}" if name else strip_scheme(self.uri)

    def _with_retries(self, request: Callable[[], T]) -> T:
        """Return the result of a request, which is retried for `RETRY_MINUTES`.

        Raises:
            FileNotFoundError: at once.
            OSError: at once if a retry cannot help, else after the last retry.
        """
        deadline = time.monotonic() + (60 * RETRY_MINUTES if self.retries else 0)
        for delay in itertools.chain(RETRY_DELAYS_SECONDS, itertools.repeat(RETRY_DELAYS_SECONDS[-1])):
            try:
                return request()
            except FileNotFoundError:
                raise
            except OSError as error:
                if time.monotonic() + delay > deadline or any(code in str(error) for code in PERMANENT_ERRORS):
                    raise
            time.sleep(delay)
        raise AssertionError("unreachable: the delays do not end")

    def subfolder(self, name: str) -> Bucket:
        """Return a folder in this one."""
        return Bucket(f"{self.uri}/{name}", self.retries)

    def check_access(self) -> None:
        """Check that the bucket exists and responds.

        Raises:
            UserError: if it does not.
        """
        bucket = strip_scheme(self.uri).split("/")[0]
        try:
            if self.without_retries()._filesystem.get_file_info(bucket).type == fs.FileType.NotFound:
                raise UserError(f"{self.uri}: there is no bucket {bucket}; create it, or {STORAGE_HINT}")
        except OSError as error:
            raise UserError(f"{self.uri}: {self.describe_error(error)}; or {STORAGE_HINT}") from None

    def without_retries(self) -> Bucket:
        """Return the same bucket with requests that fail soon."""
        return Bucket(self.uri, retries=False)

    def create(self, advice: str = STORAGE_HINT) -> None:
        """Check that the bucket is writable; folders need not be created."""
        try:
            self.without_retries().write(".writable", "")
            self.without_retries().remove(".writable")
        except OSError as error:
            problem = f"results cannot be written to {self.uri}: {self.describe_error(error)}"
            raise UserError(f"{problem}; {advice}") from None

    def list_entries(self, folder: str = "", *, recursive: bool = True) -> dict[str, int | None]:
        """Return what a folder contains, from one listing.

        Google's listings lack folders that have no object of their own. They follow from the names of their files.
        """
        all_levels = recursive or self.uri.startswith("gs://")
        selector = fs.FileSelector(self._path_to(folder), allow_not_found=True, recursive=all_levels)
        start, depth = len(self._path_to("")) + 1, folder.count("/") + 1 if folder else 0
        entries: dict[str, int | None] = {}
        for info in self._with_retries(lambda: self._filesystem.get_file_info(selector)):
            parts = info.path[start:].split("/")
            entries |= dict.fromkeys("/".join(parts[:end]) for end in range(depth + 1, len(parts)))
            entries["/".join(parts)] = info.size if info.type == fs.FileType.File else None
        if recursive:
            return entries
        return {name: size for name, size in entries.items() if name.count("/") == depth}

    def read(self, name: str) -> str:
        """Return the text of a file.

        A client asks for the size first, and reads no more than that: of a file that is replaced by a longer one
        meanwhile, it would return a part. The files at the top of a results folder are replaced, those below are not.
        """

        def read() -> bytes:
            with self._filesystem.open_input_stream(self._path_to(name)) as stream:
                return bytes(stream.read())

        content = self._with_retries(read)
        for _ in range(0 if "/" in name else MAX_REPLACED_READS):
            info = self._with_retries(lambda: self._filesystem.get_file_info(self._path_to(name)))
            if info.size == len(content):
                break
            content = self._with_retries(read)
        return content.decode()

    def map_reads(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return the results of a function that reads files, computed by `READ_THREADS` threads."""
        with ThreadPoolExecutor(READ_THREADS) as pool:
            return list(pool.map(function, items))

    def write(self, name: str, text: str) -> None:
        """Write a file; objects of a bucket are atomic."""

        def write() -> None:
            with self._filesystem.open_output_stream(self._path_to(name)) as stream:
                stream.write(text.encode())

        self._with_retries(write)

    @contextmanager
    def open_append(self, name: str) -> Iterator[int]:
        """Yield the descriptor of a temporary local file, which is uploaded as a whole periodically and at the end."""
        with tempfile.TemporaryFile("a+b") as file:
            with contextlib.suppress(FileNotFoundError):
                file.write(self.read(name).encode())
                file.flush()
            finished = threading.Event()
            uploader = threading.Thread(target=self._upload_loop, args=(file.fileno(), name, finished), daemon=True)
            uploader.start()
            try:
                yield file.fileno()
            finally:
                finished.set()
                uploader.join()

    def _upload_loop(self, descriptor: int, name: str, stop_event: threading.Event) -> None:
        """Upload a file whenever it has grown, until the event is set."""
        bucket, uploaded_bytes, is_last = self.without_retries(), 0, False
        while not is_last:
            is_last = stop_event.wait(UPLOAD_SECONDS)
            size = os.fstat(descriptor).st_size
            if size > uploaded_bytes:
                with contextlib.suppress(OSError):  # unreachable bucket: the next upload may succeed
                    bucket.write(name, os.pread(descriptor, size, 0).decode(errors="replace"))
                    uploaded_bytes = size

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with its content."""

        def remove() -> None:
            is_folder = self._filesystem.get_file_info(self._path_to(name)).type == fs.FileType.Directory
            (self._filesystem.delete_dir if is_folder else self._filesystem.delete_file)(self._path_to(name))

        with contextlib.suppress(FileNotFoundError):
            self._with_retries(remove)

    @contextmanager
    def local_copy(self, folder: str) -> Iterator[Path]:
        """Yield a temporary copy of a folder."""
        with tempfile.TemporaryDirectory(prefix="raylm-") as copy:
            for name, size in self.list_entries(folder).items():
                if size is None:  # Google's file system does not create folders within the copy
                    Path(copy, name.removeprefix(f"{folder}/")).mkdir(parents=True, exist_ok=True)
            options = {"source_filesystem": self._filesystem, "chunk_size": CHUNK_BYTES}
            self._with_retries(lambda: fs.copy_files(self._path_to(folder), copy, **options))
            yield Path(copy)

    def describe_error(self, error: OSError) -> str:
        """Return a short description for common causes, else pyarrow's message."""
        text = " ".join(str(error).split())
        return next((message for code, message in ERROR_MESSAGES.items() if code in text), text[:MAX_MESSAGE_CHARS])

    def free_bytes(self) -> None:
        """Return None: buckets have no limit."""
        return

    def tune_storage(self) -> tuple[str, Any]:
        """Return the path in the file system, and the file system."""
        return strip_scheme(self.uri), self._filesystem
