"""Lock of a results folder: one command at a time.

In a directory the operating system locks a file, and releases it when the process dies. Buckets and some network file
systems have no locks; there a process holds the lock as long as its heartbeat is alive, and takes it in three steps:

1. It writes a claim, a file of its own in `.running/`.
2. It waits until there is no other claim and no live heartbeat. It gives up if there is a live heartbeat, or a live
   claim with a smaller name. A heartbeat or claim of a process on another host is dead if it does not change for
   `HEARTBEAT_TIMEOUT_SECONDS`.
3. It writes its first heartbeat, then removes the claim.

Two processes cannot both pass step 2: buckets are strongly consistent, claims are listed before the heartbeat is read,
and so the one that lists later sees the other's claim or heartbeat. Of processes that start at the same moment, the
one with the smallest claim gets the lock. A process that stalls for longer than the timeout can lose it, and ends when
it sees that (`Heartbeat`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from raylm.errors import UserError
from raylm.files import LocksUnsupportedError, lock_file
from raylm.results import heartbeat as heartbeats
from raylm.results import json_files
from raylm.results.heartbeat import HEARTBEAT_FILE, Heartbeat, Owner, ProcessIdentity, format_heartbeat, parse_owner
from raylm.results.storage import STORAGE_HINT, Folder, Storage

LOCK_FILE, CLAIM_FOLDER = ".lock", ".running"
POLL_SECONDS = 1.0
"""Interval between checks of other claims."""


@contextmanager
def lock(storage: Storage) -> Iterator[Heartbeat]:
    """Lock a results folder, and yield its heartbeat.

    Raises:
        UserError: if another process holds the lock, naming it, or the folder cannot be locked.
    """
    with ExitStack() as stack:
        if isinstance(storage, Folder) and _lock_folder(storage, stack):
            heartbeat = stack.enter_context(Heartbeat(storage))
        else:
            with _claim(storage):
                heartbeat = stack.enter_context(Heartbeat(storage))
        yield heartbeat


def _lock_folder(folder: Folder, stack: ExitStack) -> bool:
    """Lock a folder's file until the stack ends, and return True; return False if its file system has no locks."""
    try:
        stack.enter_context(lock_file(folder.path / LOCK_FILE, wait=False))
    except BlockingIOError:
        owner = json_files.load_or_none(folder, HEARTBEAT_FILE, Owner)
        raise _in_use_error(folder, owner.holder if owner else None) from None
    except LocksUnsupportedError:
        return False
    except OSError as error:
        raise UserError(f"{folder.path} cannot be locked: {error.strerror}; {STORAGE_HINT}") from None
    return True


def _in_use_error(storage: Storage, owner: ProcessIdentity | None) -> UserError:
    return UserError(f"{storage.uri} is in use by {owner or 'another process'}; wait for it, or {STORAGE_HINT}")


@contextmanager
def _claim(storage: Storage) -> Iterator[None]:
    """Wait until no other process uses a storage without locks, which none can begin to do during the `with` block."""
    claim = _Claim(storage)
    claim.write()
    try:
        while not claim.is_alone():
            time.sleep(POLL_SECONDS)
        yield
    finally:
        storage.remove(claim.name)


class _Claim:
    """Claim of this process to the lock of a storage without locks."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self._holder = storage, ProcessIdentity.current()
        self.name = f"{CLAIM_FOLDER}/{uuid.uuid4().hex}"
        self._start = self._written = time.monotonic()
        self._first_texts: dict[str, tuple[str, float]] = {}
        """First text of each other file, and when it was read."""

    def write(self) -> None:
        """Write the claim with a new text, which other commands wait for."""
        self._storage.write(self.name, format_heartbeat(self._holder))
        self._written = time.monotonic()

    def is_alone(self) -> bool:
        """Return whether no other process has or claims the lock; claims of dead processes are removed.

        Raises:
            UserError: if another process has the lock, or will get it.
        """
        claims = list(self._storage.list_entries(CLAIM_FOLDER, recursive=False))
        is_alone = self.name in claims  # else a process that considered this one dead has removed it
        for name in (*(claim for claim in claims if claim != self.name), HEARTBEAT_FILE):
            try:
                text = self._storage.read(name)
            except FileNotFoundError:
                continue
            except ValueError:  # damaged: not UTF-8
                text = ""
            is_alive, owner = self._is_alive(name, text), parse_owner(text)
            if name == HEARTBEAT_FILE:
                if is_alive:
                    raise _in_use_error(self._storage, owner)
                is_alone &= is_alive is False
            elif is_alive is False:
                self._storage.remove(name)
            elif is_alive and (name < self.name or self._waited() > heartbeats.HEARTBEAT_TIMEOUT_SECONDS):
                raise _in_use_error(self._storage, owner)
            else:
                is_alone = False
        if self.name not in claims or time.monotonic() - self._written > heartbeats.BUCKET_HEARTBEAT_SECONDS:
            self.write()
        return is_alone

    def _waited(self) -> float:
        return time.monotonic() - self._start

    def _is_alive(self, name: str, text: str) -> bool | None:
        """Return whether the process that wrote a text lives; None if this is not known yet."""
        owner = parse_owner(text)
        is_alive = owner.is_alive() if owner else None
        first_text, since = self._first_texts.setdefault(name, (text, time.monotonic()))
        if is_alive is None and text != first_text:
            return True
        if is_alive is None and time.monotonic() - since > heartbeats.HEARTBEAT_TIMEOUT_SECONDS:
            return False
        return is_alive
