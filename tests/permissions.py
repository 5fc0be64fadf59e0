"""Permissions of files that hold for root too, as in containers, where tests run as root."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path

CAPABILITY_VERSION = 0x20080522
DAC_CAPABILITIES = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: root reads and writes whatever the permissions say."""


@contextlib.contextmanager
def enforced_permissions() -> Iterator[None]:
    """Let the permissions of files hold for this thread, although it may be root's."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable capabilities 0 to 31, then 32 to 63

    def check(result: int) -> None:
        if result:
            raise OSError(ctypes.get_errno(), "capabilities cannot be changed")

    check(libc.capget(header, data))
    effective = data[0]
    data[0] = effective & ~DAC_CAPABILITIES
    check(libc.capset(header, data))
    try:
        yield
    finally:
        data[0] = effective
        check(libc.capset(header, data))


@contextlib.contextmanager
def permissions_of(*paths: Path, mode: int) -> Iterator[None]:
    """Give files or folders other permissions, which are enforced, for the time of a `with` block."""
    before = [path.stat().st_mode for path in paths]
    for path in paths:
        path.chmod(mode)
    try:
        with enforced_permissions():
            yield
    finally:
        for path, old in zip(paths, before, strict=True):
            path.chmod(old)
