"""Lock and heartbeat of a results folder: one command at a time, and none that is dead keeps another away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from oracle import wait_for

from raylm.errors import UserError
from raylm.files import lock_file
from raylm.results import heartbeat as heartbeats
from raylm.results import lock as locks
from raylm.results.bucket import Bucket
from raylm.results.heartbeat import HEARTBEAT_FILE, Heartbeat, ProcessIdentity, format_heartbeat, parse_owner
from raylm.results.lock import CLAIM_FOLDER, LOCK_FILE, lock
from raylm.results.storage import Folder, Storage

pytest_plugins = ["storages"]

PROGRAM = Path(__file__).parents[1] / "programs" / "hold_lock.py"
OTHER_HOST = ProcessIdentity(7, "another", 1.0)


@pytest.fixture
def short_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(heartbeats, "BUCKET_HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(heartbeats, "HEARTBEAT_TIMEOUT_SECONDS", 3.0)
    monkeypatch.setattr(locks, "POLL_SECONDS", 0.1)


@contextmanager
def beating(storage: Storage, name: str) -> Iterator[None]:
    """Write heartbeats of a process on another host."""
    finished = threading.Event()

    def beat() -> None:
        while not finished.wait(0.3):
            storage.write(name, format_heartbeat(OTHER_HOST))

    storage.write(name, format_heartbeat(OTHER_HOST))
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


# ---- exclusion ----------------------------------------------------------------------------------------------------


def test_lock_is_held_until_its_process_dies(storage: Storage) -> None:
    storage.create()
    command = [sys.executable, str(PROGRAM), storage.uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None and first.stdout.readline() == "locked\n"
            with pytest.raises(UserError, match=rf"in use by process {first.pid} on .*--storage"), lock(storage):
                pass
        finally:
            first.kill()
    for _ in range(2):
        with lock(storage):
            pass
    assert {name for name, size in storage.list_entries().items() if size is not None} <= {".lock"}


def test_lock_is_not_reentrant(storage: Storage) -> None:
    storage.create()
    with lock(storage):
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "), lock(storage):
            pass
        assert parse_owner(storage.read(HEARTBEAT_FILE)) == ProcessIdentity.current()


@pytest.mark.usefixtures("short_heartbeats")
@pytest.mark.parametrize("attempt", range(3))
def test_exactly_one_of_many_that_start_together_gets_the_lock(bucket: Bucket, attempt: int) -> None:
    start, finish, num_processes = threading.Barrier(6), threading.Barrier(6), 6

    def try_lock(number: int) -> str:
        start.wait()
        try:
            with lock(bucket):
                finish.wait()
                return "locked"
        except UserError as error:
            finish.wait()
            return str(error)

    with ThreadPoolExecutor(num_processes) as pool:
        outcomes = list(pool.map(try_lock, range(num_processes)))
    assert outcomes.count("locked") == 1
    assert sum("in use by process" in outcome for outcome in outcomes) == num_processes - 1
    with lock(bucket):
        pass


# ---- dead and live processes of other hosts -----------------------------------------------------------------------


@pytest.mark.usefixtures("short_heartbeats")
@pytest.mark.parametrize("name", [HEARTBEAT_FILE, f"{CLAIM_FOLDER}/0", f"{CLAIM_FOLDER}/z"])
def test_silent_process_on_another_host_is_dead(bucket: Bucket, name: str) -> None:
    bucket.write(name, format_heartbeat(OTHER_HOST, {"running": []}))
    started = time.monotonic()
    with lock(bucket):
        assert time.monotonic() - started > heartbeats.HEARTBEAT_TIMEOUT_SECONDS
        assert bucket.list_entries(CLAIM_FOLDER) == {}
        assert parse_owner(bucket.read(HEARTBEAT_FILE)) == ProcessIdentity.current()


@pytest.mark.usefixtures("short_heartbeats")
@pytest.mark.parametrize("name", [HEARTBEAT_FILE, f"{CLAIM_FOLDER}/0", f"{CLAIM_FOLDER}/z"])
def test_live_process_on_another_host_keeps_the_lock(bucket: Bucket, name: str) -> None:
    with beating(bucket, name), pytest.raises(UserError, match="in use by process 7 on another"), lock(bucket):
        pass
    assert list(bucket.list_entries(CLAIM_FOLDER)) in ([], [name])


@pytest.mark.parametrize("name", [HEARTBEAT_FILE, f"{CLAIM_FOLDER}/0"])
def test_dead_process_on_this_host_is_not_waited_for(
    bucket: Bucket, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "HEARTBEAT_TIMEOUT_SECONDS", 3600.0)  # longer than any test may take
    bucket.write(name, format_heartbeat(replace(ProcessIdentity.current(), since=1.0)))
    with lock(bucket):
        assert parse_owner(bucket.read(HEARTBEAT_FILE)) == ProcessIdentity.current()


@pytest.mark.usefixtures("short_heartbeats")
def test_claim_removed_by_another_is_written_again(bucket: Bucket) -> None:
    def remove_claims() -> None:
        wait_for(lambda: claims() != [], 20)
        for name in claims():
            bucket.remove(name)

    def claims() -> list[str]:
        return [name for name in bucket.list_entries(CLAIM_FOLDER) if name != f"{CLAIM_FOLDER}/z"]

    bucket.write(f"{CLAIM_FOLDER}/z", format_heartbeat(OTHER_HOST))
    remover = threading.Thread(target=remove_claims)
    remover.start()
    with lock(bucket):
        remover.join()
        assert bucket.list_entries(CLAIM_FOLDER) == {}


# ---- heartbeat ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_heartbeats")
def test_heartbeat_reports_the_state_and_is_removed(storage: Storage) -> None:
    def read_state() -> object:
        return json.loads(storage.read(HEARTBEAT_FILE))["state"]

    storage.create()
    with lock(storage) as heartbeat:
        assert read_state() is None
        heartbeat.report(lambda: {"done": 1, "loss": float("nan")})
        wait_for(lambda: read_state() == {"done": 1, "loss": None}, 20)
    assert HEARTBEAT_FILE not in storage.list_entries()


@pytest.mark.usefixtures("short_heartbeats")
def test_process_that_lost_its_lock_ends_and_leaves_the_new_heartbeat(bucket: Bucket) -> None:
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    new = format_heartbeat(OTHER_HOST)
    try:
        with lock(bucket):
            bucket.write(HEARTBEAT_FILE, new)
            wait_for(lambda: signals, 20)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == [signal.SIGTERM] and bucket.read(HEARTBEAT_FILE) == new


@pytest.mark.usefixtures("short_heartbeats")
@pytest.mark.parametrize("content", [b"", b"[]", b'{"holder": 1}', b"\xff"])
def test_damaged_heartbeat_is_replaced(tmp_path: Path, content: bytes) -> None:
    def read_owner() -> ProcessIdentity | None:
        return parse_owner((tmp_path / HEARTBEAT_FILE).read_text(errors="replace"))

    with Heartbeat(Folder(tmp_path)):
        (tmp_path / HEARTBEAT_FILE).write_bytes(content)
        wait_for(lambda: read_owner() == ProcessIdentity.current(), 20)


@pytest.mark.usefixtures("short_heartbeats")
@pytest.mark.parametrize("content", [None, b"[]", b"\xff"])
def test_owner_of_a_locked_folder_may_be_unknown(tmp_path: Path, content: bytes | None) -> None:
    with lock_file(tmp_path / LOCK_FILE, wait=False):
        if content is not None:
            (tmp_path / HEARTBEAT_FILE).write_bytes(content)
        with pytest.raises(UserError, match="in use by another process"), lock(Folder(tmp_path)):
            pass


def test_process_identity_survives_its_file_and_differs_from_older_processes() -> None:
    current = ProcessIdentity.current()
    assert parse_owner(format_heartbeat(current)) == current and current.is_alive()
    assert replace(current, since=current.since - 60).is_alive() is False
    assert replace(current, process=2**22 + 1).is_alive() is False
    assert OTHER_HOST.is_alive() is None
