"""The two ends of a command that went wrong: a mistake of the user (exit code 2), a failure of the work (1)."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can mend. Its text says what is wrong, where, what was expected, what to do next."""


class WorkError(Exception):
    """The work itself failed, although what was asked for made sense."""
