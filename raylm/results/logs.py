"""What trials print, kept in their folders: taken from the process that trains, shown by `raylm logs`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylm.errors import UserError, format_suggestion
from raylm.results.folder import list_launches
from raylm.results.rows import Results, Row

LOG_FILE_PATTERN = re.compile(r"log(-\d+)?\.txt")
"""Of the files: of the first rank of a trial, and of each other one."""
MAX_NAMES = 10
"""Runs that a message lists."""


# ---- shown again --------------------------------------------------------------------------------------------------


def match_row(results: Results, query: str) -> Row:
    """The row of a run's name, of how it begins, or of its id.

    Raises:
        UserError: if it is none, or several begin so.
    """
    known = {row.config.run_name: row for row in results.rows}
    found = [row for run, row in known.items() if run.startswith(query) or row.config.id == query]
    if len(found) == 1 or query in known:
        return known.get(query) or found[0]
    if found:
        raise UserError(
            f"{len(found):,} runs begin with {query}: {_join_names([row.config.run_name for row in found])}"
        )
    hint = format_suggestion(query, known) or f"; expected one of {_join_names(list(known))}"
    raise UserError(f"{query}: no such run in {results.storage.uri}{hint}")


def _join_names(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else "")


def read_logs(results: Results, row: Row) -> Iterator[tuple[str, str]]:
    """The files of a run and what is in them, oldest launch first."""
    for launch in list_launches(results.storage):
        names = results.storage.list_entries(f"{launch}/{row.config.run_name}", recursive=False)
        for name in sorted(names):
            if LOG_FILE_PATTERN.fullmatch(name.rpartition("/")[2]):
                yield name, results.storage.read(name)
