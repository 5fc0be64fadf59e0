"""Rows of a sweep: the state of each trial in its results folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from raylm.config.dataset import CorpusKey
from raylm.config.trial import TrialConfig
from raylm.errors import UserError, format_suggestion, safe_repr
from raylm.results.data_record import CorpusData, DataRecord, bytes_factor, index_data, is_lossy
from raylm.results.measures import Measure, choose_measure
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.storage import Storage
from raylm.results.sweep_record import LaunchRecord, SweepRecord

DONE, STOPPED, DIVERGED, FAILED = "done", "stopped", "diverged", "failed"
INTERRUPTED, PENDING = "interrupted", "pending"
RUNNING, QUEUED = "running", "queued"
"""Status of a trial: trained to its last step; stopped early by the scheduler; ended by a loss that is not finite;
ended by errors after all retries; paused or killed, resumed by the next launch; not started. RUNNING and QUEUED
replace INTERRUPTED and PENDING while a command runs the sweep and are never stored."""
FINISHED_STATUSES = (DONE, STOPPED, DIVERGED, FAILED)
"""Statuses of trials that the next launch does not run."""


@dataclass(frozen=True)
class SavedCheckpoint:
    """Checkpoint folder with all its files in their recorded sizes."""

    folder: str
    """Name in the results folder."""
    progress: Progress
    weights_hash: str = ""
    """Identity of the weights."""


@dataclass(frozen=True)
class Row:
    """State of one trial in storage."""

    config: TrialConfig
    status: str
    """`done`, `stopped`, `diverged`, `failed`, `interrupted` or `pending`."""
    reason: str
    """Reason of status `stopped`, `diverged` or `failed`, one line."""
    latest_checkpoint: SavedCheckpoint | None
    """Checkpoint with the most steps."""
    best_checkpoint: SavedCheckpoint | None
    """Checkpoint of the best epoch."""
    length_evals: Mapping[int, float] = field(default_factory=dict)
    """Val loss of the best checkpoint in nats per token by context length in tokens, from `raylm evaluate`."""
    test_loss: float | None = None
    """Loss of the best checkpoint on the test split in nats per token, from `raylm evaluate --split test`."""
    length_precisions: Mapping[int, str] = field(default_factory=dict)
    """Precision of each of `length_evals`; those of versions before have none."""
    test_precision: str | None = None
    """Precision of `test_loss`; None if there is none, or it is of a version before."""
    zero_shot_loss: float | None = None
    """Val loss of the model before fine-tuning in nats per token."""
    zero_shot_precision: str | None = None
    """Precision of `zero_shot_loss`."""

    @property
    def metrics(self) -> EvalMetrics | None:
        """Losses of the best epoch; None before the first evaluation."""
        return self.latest_checkpoint.progress.best_metrics if self.latest_checkpoint else None

    @property
    def evaluations(self) -> list[EvalMetrics]:
        """Evaluations so far."""
        return self.latest_checkpoint.progress.evaluations if self.latest_checkpoint else []

    @property
    def is_finished(self) -> bool:
        """True if the next launch does not run this trial."""
        return self.status in FINISHED_STATUSES

    def truncate(self, last_eval: EvalMetrics) -> Row:
        """Return the row as if the trial had been stopped early after one of its evaluations."""
        assert self.latest_checkpoint is not None
        evaluations = [metrics for metrics in self.evaluations if metrics.tokens_seen <= last_eval.tokens_seen]
        progress = replace(self.latest_checkpoint.progress, evaluations=evaluations)
        return replace(self, status=STOPPED, latest_checkpoint=replace(self.latest_checkpoint, progress=progress))


@dataclass(frozen=True)
class SweepRows:
    """Rows of a sweep with their storage and record."""

    storage: Storage
    """Results folder."""
    rows: list[Row]
    """Rows in the order of the sweep file."""
    record: SweepRecord | None = None
    """Content of sweep.json when the rows were read; None before the first launch."""
    is_ordered: bool = False
    """True if the rows are in the order to show, as after a selection."""

    @property
    def launches(self) -> list[LaunchRecord]:
        """Recorded launches, oldest first."""
        return self.record.launches if self.record else []

    @cached_property
    def data(self) -> CorpusData:
        """Recorded corpora of all launches."""
        return index_data(record for launch in self.launches for record in launch.data)

    @cached_property
    def measures(self) -> dict[str, Measure]:
        """Measure that the rows of each dataset are ranked by; rows of different datasets are not ranked."""
        keys: dict[str, list[CorpusKey]] = {row.config.dataset: [] for row in self.rows}
        for row in self.rows:
            if row.metrics is not None:
                keys[row.config.dataset].append(row.config.corpus_key)
        return {dataset: choose_measure(evaluated, self.data) for dataset, evaluated in keys.items()}

    def measures_with(self, records: Iterable[DataRecord]) -> dict[str, Measure]:
        """Return the measures if trials on these corpora join the rows."""
        data = index_data([*self.data.values(), *records])
        evaluated = [row.config.corpus_key for row in self.rows if row.metrics is not None]
        keys = list(dict.fromkeys([*evaluated, *data]))
        datasets = dict.fromkeys([*(row.config.dataset for row in self.rows), *(spec.dataset for spec, _ in keys)])
        return {name: choose_measure([key for key in keys if key[0].dataset == name], data) for name in datasets}

    def ranked_loss(self, row: Row) -> float | None:
        """Return the loss that a row is ranked by, in nats; None if it has none, or none that compares."""
        measure = self.measures[row.config.dataset]
        if row.metrics is None or not measure.compares(row.config):
            return None
        return measure.compute(row.config, row.metrics)

    def nats_per_byte(self, row: Row) -> float | None:
        """Return a row's val loss in nats per byte of the original text; None if it or the bytes are not known.

        A tokenizer that loses text has none: its loss is that of another text.
        """
        record = self.data.get(row.config.corpus_key)
        factor = None if is_lossy(record) else bytes_factor(record)
        return None if row.metrics is None or factor is None else row.metrics.val_loss * factor

    def bits_per_byte(self, row: Row) -> float | None:
        """Return a row's val loss in bits per byte of the original text; None as for `nats_per_byte`."""
        nats = self.nats_per_byte(row)
        return None if nats is None else nats / math.log(2)

    def find_launch(self, row: Row) -> LaunchRecord | None:
        """Return the launch that evaluated a row's best epoch; None if its record is lost."""
        checkpoint = row.best_checkpoint or row.latest_checkpoint
        folder = checkpoint.folder.split("/")[0] if checkpoint else ""
        return next((launch for launch in self.launches if f"launch-{launch.number:03d}" == folder), None)

    def find_precision(self, row: Row) -> str | None:
        """Return the precision that a row's losses were evaluated in; None if it has none, or it is not known.

        Evaluations of versions before have none of their own: theirs is the launch's.
        """
        if row.metrics is None:
            return None
        if row.metrics.precision:
            return row.metrics.precision
        launch = self.find_launch(row)
        return launch.precision if launch and launch.precision != "auto" else None

    def best(self, dataset: str | None = None) -> Row:
        """Return the done row with the lowest loss, by the measure of its dataset (`measures`).

        Args:
            dataset: consider rows of this dataset only; required if the sweep has several.

        Raises:
            UserError: if the sweep has several datasets and none is given, does not have the given one, or has no
                done row of it.
        """
        datasets = list(dict.fromkeys(row.config.dataset for row in self.rows))
        if dataset is None and len(datasets) > 1:
            raise UserError(f"{self.storage.uri} has a best row for each dataset; name one: {', '.join(datasets)}")
        if dataset is not None and dataset not in datasets:
            expected = " or ".join(datasets)
            raise UserError(f"{self.storage.uri} has no dataset {safe_repr(dataset)}; expected {expected}")
        best = self.best_by_dataset.get(dataset or "".join(datasets))
        if best is None:
            raise UserError(f"{self.storage.uri} has no finished row{f' of {dataset}' if dataset else ''} yet")
        return best

    @property
    def best_by_dataset(self) -> dict[str, Row]:
        """Done row with the lowest loss of each dataset, by its measure; the first of equals."""
        return self.find_best(self.measures)

    def find_best(self, measures: Mapping[str, Measure]) -> dict[str, Row]:
        """Return the done row with the lowest loss of each dataset, by these measures; the first of equals."""
        best: dict[str, Row] = {}
        lowest: dict[str, float] = {}
        for row in self.rows:
            dataset, metrics = row.config.dataset, row.metrics
            if row.status != DONE or metrics is None or not measures[dataset].compares(row.config):
                continue
            loss = measures[dataset].compute(row.config, metrics)
            if loss < lowest.get(dataset, math.inf):
                best[dataset], lowest[dataset] = row, loss
        return best

    def get_row(self, run_name: str) -> Row:
        """Return the row of a run name, or of the name of its folder from an earlier version.

        Raises:
            UserError: if there is none.
        """
        rows = {name: row for row in self.rows for name in row.config.folder_names}
        if run_name not in rows:
            hint = format_suggestion(run_name, rows) or "; `raylm report` shows their names"
            raise UserError(f"{self.storage.uri} has no run {safe_repr(run_name)}{hint}")
        return rows[run_name]

    def count(self, *statuses: str) -> int:
        """Return the number of rows with one of these statuses."""
        return sum(row.status in statuses for row in self.rows)
