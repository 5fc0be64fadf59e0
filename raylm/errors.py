"""What can go wrong, in words: mistakes of the user (exit code 2), failures of the work (exit code 1), pauses."""

from __future__ import annotations

import difflib
import enum
import errno
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any


class UserError(Exception):
    """Something that the user can mend. Its text says what is wrong, where, what was expected, what to do next."""

    def __init__(self, message: str) -> None:
        super().__init__(escape_control_chars(message))


class WorkError(Exception):
    """The work itself failed, although what was asked for made sense."""


class RestartError(WorkError):
    """A trial is to go on from its newest checkpoint in another way or in another place, which is no error of it."""


class PauseReason(enum.StrEnum):
    """Why a launch ended with trials left, which the same command goes on with."""

    INTERRUPTED = "interrupted"
    DISK_FULL = "the disk is full"
    BUDGET_USED = "the time budget is used up"


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is and what is wrong there."""

    location: str
    message: str

    def nested_in(self, parent: str) -> Problem:
        """The same problem, seen from the space that holds the field."""
        return replace(self, location=f"{parent}.{self.location}")

    def __str__(self) -> str:
        return escape_control_chars(f"{self.location}: {self.message}")


class SweepError(UserError):
    """Everything that is wrong with a sweep or a trial."""

    def __init__(self, problems: Iterable[Problem], source: str = "this sweep") -> None:
        self.problems = list(dict.fromkeys(problems))
        self.source = source
        head = f"{source} has {pluralize(len(self.problems), 'mistake')}:"
        Exception.__init__(self, "\n  ".join([escape_control_chars(head), *map(str, self.problems)]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says so: that of a GPU has a type of its own, that of a CPU a text alone."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says so, whatever its type: libraries wrap the system's own, some as text alone."""
    number, text = getattr(error, "errno", None), str(error)
    in_words = os.strerror(errno.ENOSPC) in text or re.fullmatch(r"\d+ requested and \d+ written", text)  # NumPy's
    return number in (errno.ENOSPC, errno.EDQUOT) or bool(in_words)


def pluralize(number: int, noun: str) -> str:
    """`1 trial`, `1,200 trials`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """`8.1 s`, `95 s`, `4.2 min`, `3.1 h`, `12 d`."""
    unit, size = next(((u, s) for u, s in (("s", 1), ("min", 60), ("h", 3600)) if seconds < 99.5 * s), ("d", 86400))
    return f"{seconds / size:,.{1 if seconds < 9.95 * size else 0}f} {unit}"


def escape_control_chars(text: str) -> str:
    """A text in one line, without what a terminal would act on."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def safe_repr(value: object) -> str:
    """A value as it can stand in a message: one line, not too long, without control characters."""
    try:
        text = escape_control_chars(" ".join(repr(value).split()))
    except Exception:  # a number of more digits than Python writes, lists too deep, a class of the user's own
        text = f"a {type(value).__name__} that cannot be written out"
    return text if len(text) <= 80 else text[:77] + "..."


def format_suggestion(name: str, candidates: Iterable[str]) -> str:
    """`; did you mean X?` or nothing."""
    close = difflib.get_close_matches(name.lower(), list(candidates), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def unknown_name_problem(name: str, candidates: Iterable[str]) -> Problem:
    """The problem of a field or option that does not exist."""
    candidates = list(candidates)
    hint = format_suggestion(str(name), candidates) or f"; expected one of {', '.join(candidates)}"
    return Problem(str(name), f"is not known{hint}")


def to_plain_text(value: Any) -> str:
    """Recorded data as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {to_plain_text(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "; ".join(map(to_plain_text, value)) or "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
