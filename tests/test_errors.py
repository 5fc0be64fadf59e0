"""Texts of error messages: one line each, also where the error says nothing."""

from __future__ import annotations

import errno

import pytest

from raylm.errors import UserError, escape_control_chars, is_disk_full, one_line, safe_repr, summarize


@pytest.mark.parametrize("message", ["", "  ", "\n\n"])
def test_error_without_a_message_is_named_by_its_type(message: str) -> None:
    assert one_line(ValueError(message)) == "ValueError"
    assert summarize(ValueError(message)) == "ValueError:"


def test_only_the_first_line_of_a_message_is_kept() -> None:
    assert one_line(OSError("\n disk is gone\nmore")) == "disk is gone"
    assert summarize(ValueError("a\n b")) == "ValueError: a b"
    assert len(summarize(ValueError("x" * 10_000))) == 500


def test_control_characters_cannot_reach_a_terminal() -> None:
    assert escape_control_chars("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"
    assert str(UserError("a\x07b")) == "a\\x07b"


def test_value_is_printed_short_whatever_it_is() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert safe_repr(Broken()) == "a Broken that cannot be printed"
    assert len(safe_repr("x" * 1000)) == 80


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("write failed: No space left on device"),
        OSError("1000 requested and 10 written"),
    ],
)
def test_full_disk_is_recognized(error: Exception) -> None:
    assert is_disk_full(error)
    assert not is_disk_full(OSError(errno.EACCES, "Permission denied"))
