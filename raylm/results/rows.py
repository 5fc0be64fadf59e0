"""Rows of a sweep: the state of each trial in its results folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from raylm.config.trial import TrialConfig
from raylm.errors import UserError, format_suggestion, safe_repr
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.storage import Storage
from raylm.results.sweep_record import LaunchRecord, SweepRecord

DONE, STOPPED, DIVERGED, FAILED = "done", "stopped", "diverged", "failed"
INTERRUPTED, PENDING = "interrupted", "missing"
RUNNING, QUEUED = "running", "waiting"
"""What a row can be: trained to its last step; stopped early by the scheduler; a loss was not finite; gave an error
until its retries were used up; ended on its way, to go on from its checkpoint; not begun. And while a command runs it,
of which storage says nothing: running; to be begun or gone on with."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint folder whose files are all there."""

    folder: str
    """Its name in the results folder."""
    progress: Progress
    """How far the trial was."""
    weights_hash: str = ""
    """Stands for its weights."""


@dataclass(frozen=True)
class Row:
    """One trial as it stands in storage."""

    config: TrialConfig
    """What it is."""
    status: str
    """`done`, `stopped`, `diverged`, `failed`, `interrupted` or `missing`."""
    reason: str
    """Why it was stopped, diverged or failed, in a line."""
    latest_checkpoint: SavedCheckpoint | None
    """The checkpoint with the most steps done."""
    best_checkpoint: SavedCheckpoint | None
    """The checkpoint of the best epoch."""
    length_evals: Mapping[int, float] = field(default_factory=dict)
    """Val loss of the best checkpoint at other context lengths, by their tokens, where `raylm evaluate` was run."""

    @property
    def metrics(self) -> EvalMetrics | None:
        """The losses of the best epoch; None where no epoch was evaluated."""
        return self.latest_checkpoint.progress.best_metrics if self.latest_checkpoint else None

    @property
    def evaluations(self) -> list[EvalMetrics]:
        """All of its evaluations so far."""
        return self.latest_checkpoint.progress.evaluations if self.latest_checkpoint else []

    def truncate(self, last_eval: EvalMetrics) -> Row:
        """This row as it would stand, had it been stopped early at one of its evaluations."""
        assert self.latest_checkpoint is not None
        kept = [one for one in self.evaluations if one.tokens_seen <= last_eval.tokens_seen]
        progress = replace(self.latest_checkpoint.progress, evaluations=kept)
        return replace(self, status=STOPPED, latest_checkpoint=replace(self.latest_checkpoint, progress=progress))

    @property
    def is_finished(self) -> bool:
        """Whether running the sweep again leaves this row as it is."""
        return self.status in (DONE, STOPPED, DIVERGED, FAILED)


@dataclass(frozen=True)
class SweepRows:
    """Rows of a sweep with their storage and record."""

    storage: Storage
    """The results folder."""
    rows: list[Row]
    """In the order of the sweep file."""
    record: SweepRecord | None = None
    """Content of sweep.json when the rows were read; None before the first launch."""

    @property
    def launches(self) -> list[LaunchRecord]:
        """Recorded launches, oldest first."""
        return self.record.launches if self.record else []

    def best(self, dataset: str | None = None) -> Row:
        """The finished row with the lowest adj val loss.

        Args:
            dataset: among the rows of which; needed where the sweep has several.

        Raises:
            UserError: if it is needed, the sweep does not have it, or no row of it is finished.
        """
        known = list(dict.fromkeys(row.config.dataset for row in self.rows))
        if dataset is None and len(known) > 1:
            raise UserError(f"{self.storage.uri} has a best row for each dataset; name one: {', '.join(known)}")
        if dataset is not None and dataset not in known:
            raise UserError(f"{self.storage.uri} has no dataset {safe_repr(dataset)}; expected {' or '.join(known)}")
        best = self.best_by_dataset.get(dataset or "".join(known))
        if best is None:
            raise UserError(f"{self.storage.uri} has no finished row{f' of {dataset}' if dataset else ''} yet")
        return best

    @property
    def best_by_dataset(self) -> dict[str, Row]:
        """Of each dataset the finished row with the lowest adj val loss, which alone compares between tokenizers."""
        best: dict[str, Row] = {}
        lowest: dict[str, float] = {}
        for row in self.rows:
            dataset, measured = row.config.dataset, row.metrics
            if row.status == DONE and measured and measured.adj_val_loss < lowest.get(dataset, math.inf):
                best[dataset], lowest[dataset] = row, measured.adj_val_loss
        return best

    def get_row(self, run_name: str) -> Row:
        """The row of a run name.

        Raises:
            UserError: if there is none.
        """
        found = {row.config.run_name: row for row in self.rows}
        if run_name not in found:
            hint = format_suggestion(run_name, found) or "; `raylm report` shows their names"
            raise UserError(f"{self.storage.uri} has no run {safe_repr(run_name)}{hint}")
        return found[run_name]

    def count(self, *statuses: str) -> int:
        """How many rows have one of these statuses."""
        return sum(row.status in statuses for row in self.rows)


Results = SweepRows  # until all modules use the new name
