"""Logs of trials: text files in their folders, one for each process that trains."""

from __future__ import annotations

import re
from collections.abc import Iterator

from raylm.errors import UserError, format_suggestion
from raylm.results.folder import list_launches
from raylm.results.rows import Row, SweepRows

LOG_FILE_PATTERN = re.compile(r"log(-\d+)?\.txt")
"""Names of log files: `log.txt` of rank 0, `log-1.txt` of rank 1."""
MAX_NAMES = 10
"""Maximum number of run names in a message."""


def log_file_name(rank: int) -> str:
    """Return the name of a rank's log file in the trial's folder."""
    return f"log-{rank}.txt" if rank else "log.txt"


def match_row(results: SweepRows, query: str) -> Row:
    """Return the row with a run name, a unique beginning of a run name, or a trial id.

    Raises:
        UserError: if no row matches, or several do.
    """
    rows = {name: row for row in results.rows for name in row.config.folder_names}
    found = {row.config.id: row for name, row in rows.items() if name.startswith(query) or row.config.id == query}
    matches = list(found.values())
    if len(matches) == 1 or query in rows:
        return rows.get(query) or matches[0]
    if matches:
        names = _join_names([row.config.run_name for row in matches])
        raise UserError(f"{len(matches):,} runs begin with {query}: {names}")
    hint = (
        format_suggestion(query, rows)
        or f"; expected one of {_join_names([row.config.run_name for row in results.rows])}"
    )
    raise UserError(f"{query}: no such run in {results.storage.uri}{hint}")


def _join_names(names: list[str]) -> str:
    return ", ".join(names[:MAX_NAMES]) + (f" and {len(names) - MAX_NAMES:,} more" if len(names) > MAX_NAMES else "")


def read_logs(results: SweepRows, row: Row) -> Iterator[tuple[str, str]]:
    """Yield name and text of each log file of a trial, oldest launch first."""
    for launch in list_launches(results.storage):
        for folder in row.config.folder_names:
            for name in sorted(results.storage.list_entries(f"{launch}/{folder}", recursive=False)):
                if LOG_FILE_PATTERN.fullmatch(name.rpartition("/")[2]):
                    yield name, results.storage.read(name)
