"""What trials print, kept in their folders: taken from the process that trains, shown by `raylm logs`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylm.errors import UserError, nearest
from raylm.results.folder import launches
from raylm.results.rows import Results, Row

NAME = re.compile(r"log(-\d+)?\.txt")
"""Of the files: of the first rank of a trial, and of each other one."""
MOST_NAMES = 10
"""Runs that a message lists."""


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
