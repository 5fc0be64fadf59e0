"""Exceptions, and the text of error messages.

A `UserError` ends a command with exit code 2, a `WorkError` with exit code 1.
"""

from __future__ import annotations

import difflib
import enum
import errno
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

MAX_REPR_CHARS = 80
MAX_SUMMARY_CHARS = 500


NO_HOME = (
    "this user has no home: HOME is not set, and the user is not in /etc/passwd; "
    "set HOME to a folder that can be written"
)


class UserError(Exception):
    """A mistake that the user can correct.

    Its message says what is wrong, where, what was expected and what to do next.
    """

    def __init__(self, message: str) -> None:
        super().__init__(escape_control_chars(message))


class WorkError(Exception):
    """A failure of the work itself, although the request was valid."""


class RestartError(WorkError):
    """A request to restart a trial from its latest checkpoint. Does not count as a failure of the trial."""


class PauseReason(enum.StrEnum):
    """Reason why a launch ended with unfinished trials, which the same command resumes."""

    INTERRUPTED = "interrupted"
    DISK_FULL = "the disk is full"
    FILE_LIMIT = "a file would be larger than this process may write"
    BUDGET_USED = "the time budget is used up"

    @property
    def advice(self) -> str:
        """Change without which the same command would end for the same reason; empty if none is needed."""
        needed = {self.DISK_FULL: "free some space", self.FILE_LIMIT: "raise the limit with `ulimit -f unlimited`"}
        return needed.get(self, "")

    @property
    def next_step(self) -> str:
        """Advice, and the way to resume."""
        return f"{self.advice}, then run the same command to resume".removeprefix(", then ")


@dataclass(frozen=True)
class Problem:
    """One mistake in a sweep: its location and a message."""

    location: str
    message: str

    def nested_in(self, parent: str) -> Problem:
        """Return the same problem, located below a parent such as `space`."""
        return replace(self, location=f"{parent}.{self.location}")

    def __str__(self) -> str:
        return escape_control_chars(f"{self.location}: {self.message}")


class SweepError(UserError):
    """All mistakes of a sweep or a trial."""

    def __init__(self, problems: Iterable[Problem], source: str = "this sweep") -> None:
        self.problems = list(dict.fromkeys(problems))
        self.source = source
        number = len(self.problems)
        head = f"{source} has {number} mistake{'' if number == 1 else 's'}:"
        Exception.__init__(self, "\n  ".join([escape_control_chars(head), *map(str, self.problems)]))


# ---- kinds of errors ----------------------------------------------------------------------------------------------


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: torch's error on `cuda` has a type of its own, others only a text."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return any(
        words in str(error) for words in ("can't allocate memory", "std::bad_alloc", "MPS backend out of memory")
    )


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error means a full disk, quota, or limit on the size of files (`ulimit -f`).

    Libraries wrap the system's error as text.
    """
    number, text = getattr(error, "errno", None), str(error)
    in_words = os.strerror(errno.ENOSPC) in text or re.fullmatch(r"\d+ requested and \d+ written", text)  # NumPy's
    return number in (errno.ENOSPC, errno.EDQUOT) or bool(in_words) or is_file_limit(error)


def is_file_limit(error: BaseException) -> bool:
    """Return whether a file would have become larger than `ulimit -f` or the file system allows."""
    return getattr(error, "errno", None) == errno.EFBIG or os.strerror(errno.EFBIG) in str(error)


def find_disk_limit(error: BaseException) -> PauseReason:
    """Return the cause of an error for which `is_disk_full` holds."""
    return PauseReason.FILE_LIMIT if is_file_limit(error) else PauseReason.DISK_FULL


def describe_full_disk(error: BaseException) -> tuple[str, str]:
    """Return the cause of an error for which `is_disk_full` holds, and what to do about it."""
    cause = find_disk_limit(error)
    return str(cause), cause.advice


def is_not_writable(error: OSError) -> bool:
    """Return whether a file or folder may not be written: permissions, a read-only disk, or a folder such as /proc."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)


def describe_os_error(error: OSError) -> str:
    """Return the problem that the system reports, the file it is about, and advice if there is any, for a message."""
    cause, advice = describe_full_disk(error) if is_disk_full(error) else (error.strerror or str(error), "")
    path = f" ({error.filename})" if error.filename else ""
    return escape_control_chars(f"{cause}{path}" + (f"; {advice}" if advice else ""))


def is_home_unknown(error: BaseException) -> bool:
    """Return whether `Path.home` or `Path.expanduser` has found no home of this user."""
    return isinstance(error, RuntimeError) and "determine home" in str(error)


# ---- text of messages ---------------------------------------------------------------------------------------------


def one_line(error: BaseException) -> str:
    """Return an error's whole message in one line of at most 500 characters, or its type's name if it is empty."""
    return _join_lines(str(error)) or type(error).__name__


def summarize(error: BaseException) -> str:
    """Return an error's type and its whole message in one line of at most 500 characters."""
    return _join_lines(f"{type(error).__name__}: {error}")


def _join_lines(text: str) -> str:
    """Return a text in one line; of a long one the beginning and the end, which have the problem and the advice."""
    text = " ".join(text.split())
    if len(text) <= MAX_SUMMARY_CHARS:
        return text
    half = (MAX_SUMMARY_CHARS - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def escape_control_chars(text: str) -> str:
    """Return a text in one line, without characters that a terminal would act on."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def safe_repr(value: object) -> str:
    """Return a value as it can stand in a message: one line, at most 80 characters, no control characters."""
    try:
        text = escape_control_chars(" ".join(repr(value).split()))
    except Exception:  # an integer with more digits than Python writes, lists nested too deep, a user's own class
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= MAX_REPR_CHARS else text[: MAX_REPR_CHARS - 3] + "..."


def format_suggestion(name: str, candidates: Iterable[str]) -> str:
    """Return `; did you mean 'X'?` for the most similar candidate, or an empty string."""
    close = difflib.get_close_matches(name.lower(), list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def unexpected_value(location: str, value: object, expected: str) -> Problem:
    """Return the problem of a value that is not what its location takes."""
    return Problem(location, f"got {safe_repr(value)}; expected {expected}")


def unknown_name_problem(name: str, candidates: Iterable[str]) -> Problem:
    """Return the problem of a field or option that does not exist."""
    candidates = list(candidates)
    hint = format_suggestion(str(name), candidates) or f"; expected one of {', '.join(candidates)}"
    return Problem(str(name), f"is not known{hint}")
