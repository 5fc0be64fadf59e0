"""Writer of sweep.json and of a search's study while trials are suggested."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from raylm.config.sweep import Sweep
from raylm.results import sweep_record
from raylm.results.rows import SweepRows
from raylm.results.sweep_record import SweepRecord
from raylm.tuning.trial_queue import TrialQueue

if TYPE_CHECKING:
    from raylm.tuning.search import Suggester

STUDY_WRITE_SECONDS = 30.0
"""Minimum time between two writes of a study; a write takes time proportional to the number of trials."""


class RecordWriter:
    """Writer of sweep.json and of a search's study while a queue runs."""

    def __init__(
        self,
        sweep: Sweep,
        results: SweepRows,
        queue: TrialQueue,
        suggester: Suggester | None,
        begun: SweepRecord,
    ) -> None:
        """Create a writer.

        Args:
            begun: record of earlier launches, with the record of this one.
        """
        self._sweep, self._storage, self._queue, self._suggester = sweep, results.storage, queue, suggester
        self._begun, self._grid_trials = begun, [row.config for row in results.rows]
        self._written: SweepRecord | None = None
        self._last_study_write = -math.inf

    def write(self, *, force_study: bool = False) -> None:
        """Write sweep.json if it has changed, and the study if its last write is long ago or a write is forced."""
        queue, suggester = self._queue, self._suggester
        suggested = [*queue.trials, *self._begun.trials[len(queue.trials) :]]
        record = replace(
            self._begun,
            name=self._sweep.name,
            trials=suggested if suggester else self._grid_trials,
            search=self._sweep.search_name,
            failed_ids=frozenset(queue.failed_ids),
            delay=queue.delay,
            exhausted=bool(suggester) and queue.exhausted,
        )
        if record != self._written:
            sweep_record.write(self._storage, record)
            self._written = record
        if suggester and (force_study or time.monotonic() - self._last_study_write > STUDY_WRITE_SECONDS):
            suggester.write_study(self._storage)
            self._last_study_write = time.monotonic()
