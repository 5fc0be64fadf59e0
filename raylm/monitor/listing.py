"""Sweeps of a storage: which there are, which run, and how far they are."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass

from raylm.errors import UserError
from raylm.monitor.heartbeat import LastHeartbeat, read_heartbeat
from raylm.report.analysis import Results, load_results
from raylm.report.tables.columns import Column
from raylm.report.tables.sheet import Sheet
from raylm.results.rows import DONE, FAILED
from raylm.results.storage import Storage
from raylm.results.sweep_record import RECORD_FILE
from raylm.units import format_duration, pluralize

RUNNING, UNFINISHED, FINISHED, UNREADABLE = "running", "unfinished", "done", "unreadable"
"""States of a sweep: a command runs it; rows remain for the next command; all rows have ended; damaged."""
COLUMNS = (
    Column("sweep", is_numeric=False),
    Column("state", is_numeric=False),
    Column("done"),
    Column("rows"),
    Column("failed"),
    Column("best", is_numeric=False),
    Column("launched"),
)


@dataclass(frozen=True)
class SweepListing:
    """Sweep of a storage in one line."""

    name: str
    uri: str
    state: str
    """`running`, `unfinished`, `done` or `unreadable`."""
    done: int = 0
    rows: int = 0
    failed: int = 0
    best: tuple[str, ...] = ()
    """Lowest ranked loss of each dataset, with its name."""
    age_seconds: float | None = None
    """Time since the last launch began; None if it is not recorded."""
    problem: str = ""
    """Reason why it cannot be read."""


def find_sweeps(storage: Storage) -> list[str]:
    """Return the names of the results folders in a storage, in alphabetical order."""
    folders = [name for name, size in storage.list_entries(recursive=False).items() if size is None]
    return sorted(n for n in folders if f"{n}/{RECORD_FILE}" in storage.list_entries(n, recursive=False))


def is_results_folder(storage: Storage) -> bool:
    """Return whether a storage is a results folder itself."""
    return RECORD_FILE in storage.list_entries(recursive=False)


def list_sweeps(storage: Storage) -> list[SweepListing]:
    """Return each sweep of a storage with its state, in alphabetical order; one that is damaged has its problem."""
    listings = []
    for name in find_sweeps(storage):
        uri = storage.uri_of(name)
        try:
            results = load_results(uri)
            listings.append(_describe(name, results, read_heartbeat(results.storage)))
        except UserError as error:
            listings.append(SweepListing(name, uri, UNREADABLE, problem=str(error)))
    return listings


def find_running(storage: Storage) -> list[tuple[Results, LastHeartbeat]]:
    """Return the sweeps of a storage that a command runs now, with its latest heartbeat."""
    running = []
    for name in find_sweeps(storage):
        last = read_heartbeat(storage.subfolder(name))
        if last and last.is_alive:
            running.append((load_results(storage.uri_of(name)), last))
    return running


def _describe(name: str, results: Results, last: LastHeartbeat | None) -> SweepListing:
    finished = all(row.is_finished for row in results.rows)
    state = RUNNING if last and last.is_alive else FINISHED if finished else UNFINISHED
    best = []
    for dataset, row in results.best_by_dataset.items():
        measure, loss = results.measures[dataset], results.ranked_loss(row)
        best.append(f"{dataset} {measure.name} {measure.format(loss)}" if loss is not None else dataset)
    started = next((launch.started for launch in reversed(results.launches) if launch.started), None)
    return SweepListing(
        name=name,
        uri=results.storage.uri,
        state=state,
        done=results.count(DONE),
        rows=len(results.rows),
        failed=results.count(FAILED),
        best=tuple(best),
        age_seconds=_age(started),
    )


def _age(started: str | None) -> float | None:
    """Return the seconds since a time in ISO 8601; None if it is not one."""
    try:
        moment = datetime.datetime.fromisoformat(started or "")
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return max(0.0, time.time() - moment.timestamp())


def build_listing_sheet(listings: list[SweepListing]) -> Sheet:
    """Return the sweeps of a storage as they are printed."""
    rows = [
        [
            listing.name,
            listing.state,
            str(listing.done),
            str(listing.rows),
            str(listing.failed),
            ", ".join(listing.best) or "–",
            "–" if listing.age_seconds is None else f"{format_duration(listing.age_seconds)} ago",
        ]
        for listing in listings
    ]
    notes = [f"{listing.name}: {listing.problem}" for listing in listings if listing.problem]
    return Sheet(COLUMNS, rows, [*notes, pluralize(len(listings), "sweep")])
