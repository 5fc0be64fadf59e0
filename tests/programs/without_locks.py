"""Run a program whose `flock` fails as on a network file system without locks: `without_locks.py CODE ARGUMENTS...`.

Linux refuses the system call with ENOLCK, for this process and its children (seccomp).
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

FLOCK_CALLS = {"x86_64": 73, "aarch64": 32}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
RETURN_ERROR, RETURN_ALLOW = 0x00050000, 0x7FFF0000


class Filter(ctypes.Structure):
    """`struct sock_fprog` of the kernel."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def refuse_flock() -> None:
    """Install the filter.

    Raises:
        OSError: if the kernel does not take it.
    """
    instructions = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (LOAD_WORD, 0, 0, 0),
            (JUMP_IF_EQUAL, 0, 1, FLOCK_CALLS[platform.machine()]),
            (RETURN, 0, 0, RETURN_ERROR | errno.ENOLCK),
            (RETURN, 0, 0, RETURN_ALLOW),
        )
    )
    program = Filter(len(instructions) // 8, instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "no seccomp")


if __name__ == "__main__":
    try:
        refuse_flock()
    except (OSError, KeyError) as error:
        print(f"skip: {error}")
        sys.exit(0)
    code, sys.argv = sys.argv[1], sys.argv[1:]
    exec(code)
