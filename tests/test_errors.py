"""Texts of error messages: one line each, also where the error says nothing."""

from __future__ import annotations

import errno

import pytest

from raylm.errors import PauseReason, UserError, escape_control_chars, is_disk_full, one_line, safe_repr, summarize


@pytest.mark.parametrize("message", ["", "  ", "\n\n"])
def test_error_without_a_message_is_named_by_its_type(message: str) -> None:
    assert one_line(ValueError(message)) == "ValueError"
    assert summarize(ValueError(message)) == "ValueError:"


def test_lines_of_a_message_are_joined_and_a_long_one_keeps_its_end() -> None:
    assert one_line(OSError("\n disk is gone\n\nuse another")) == "disk is gone use another"
    assert summarize(ValueError("a\n b")) == "ValueError: a b"
    backtrace = "no backend: \n(1) " + "a file, " * 200 + "\nyou need to have sentencepiece installed"
    for text in (one_line(ValueError(backtrace)), summarize(ValueError(backtrace))):
        assert len(text) <= 500
        assert "no backend: (1) a file" in text and text.endswith("you need to have sentencepiece installed")


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


def test_pause_says_what_to_change_before_the_same_command_resumes() -> None:
    resume = "run the same command to resume"
    assert PauseReason.INTERRUPTED.next_step == resume
    assert PauseReason.DISK_FULL.next_step == f"free some space, then {resume}"
    assert PauseReason.FILE_LIMIT.next_step == f"raise the limit with `ulimit -f unlimited`, then {resume}"
