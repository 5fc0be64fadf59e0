"""What trials print, kept in their folders: taken from the process that trains, shown by `raylm logs`."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import sys
from collections.abc import Iterator

from raylm.errors import UserError, nearest, printable
from raylm.results import Results, Row, launches
from raylm.storage import Storage

NAME = re.compile(r"log(-\d+)?\.txt")
"""Of the files: of the first rank of a trial, and of each other one."""
MOST_NAMES = 10
"""Runs that a message lists."""


def name_of(rank: int) -> str:
    """The name of a rank's file in the trial's folder."""
    return f"log-{rank}.txt" if rank else "log.txt"


@contextlib.contextmanager
def kept(folder: Storage, name: str) -> Iterator[None]:
    """Has all that this process prints go into a file, whoever prints it: Python, a library in C, a child process.

    Where the file cannot be opened it is printed as before: no log is worth a trial.
    """
    with contextlib.ExitStack() as leaving:
        try:
            file = leaving.enter_context(folder.appended(name))
        except OSError:
            yield
            return
        print(f"raylm: what follows here is in {folder.where(name)}")
        _flush()
        before = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in before:
                os.dup2(file, number)
            yield
        finally:
            _flush()
            for number, descriptor in before:
                os.dup2(descriptor, number)
                os.close(descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk
            stream.flush()


def say(text: str) -> None:
    """A line of raylm's own, with the time in UTC."""
    now = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    with contextlib.suppress(OSError):
        print(f"[{now}] {printable(text)}", flush=True)


# ---- shown again --------------------------------------------------------------------------------------------------


def row_of(results: Results, asked: str) -> Row:
    """The row of a run's name, of how it begins, or of its id.

    Raises:
        UserError: if it is none, or several begin so.
    """
    known = {row.config.run_name: row for row in results.rows}
    found = [row for run, row in known.items() if run.startswith(asked) or row.config.id == asked]
    if len(found) == 1 or asked in known:
        return known.get(asked) or found[0]
    if found:
        raise UserError(f"{len(found):,} runs begin with {asked}: {_listed([row.config.run_name for row in found])}")
    hint = nearest(asked, known) or f"; expected one of {_listed(list(known))}"
    raise UserError(f"{asked}: no such run in {results.storage.place}{hint}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else "")


def of(results: Results, row: Row) -> Iterator[tuple[str, str]]:
    """The files of a run and what is in them, oldest launch first."""
    for launch in launches(results.storage):
        names = results.storage.entries(f"{launch}/{row.config.run_name}", deep=False)
        for name in sorted(names):
            if NAME.fullmatch(name.rpartition("/")[2]):
                yield name, results.storage.read(name)
