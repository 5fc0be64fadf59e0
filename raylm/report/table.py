"""Rows as a table of text cells: in the reference's order, seeds averaged, with the reference's values. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raylm.config.catalog import MODELS
from raylm.config.trial import TrialConfig
from raylm.report.notes import LOSSY_MARK, collect_notes, lossy_rows
from raylm.report.reference import ReferenceRow, ReferenceTable
from raylm.results.measures import NATS_PER_BYTE
from raylm.results.progress import LOSS_NAMES, EvalMetrics
from raylm.results.rows import DONE, Row, SweepRows

MISSING = "–"
RISING_LOSS = "loss going up"
"""Remark of the reference table on a training loss that rises."""
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t with 1 to 10 degrees of freedom."""


@dataclass(frozen=True)
class Column:
    """Column of the table."""

    name: str
    is_numeric: bool = True


KEY_COLUMNS = (
    Column("dataset", is_numeric=False),
    Column("context len"),
    Column("model", is_numeric=False),
    Column("batch size"),
)
LOSS_COLUMNS = (Column("train loss"), Column("val loss"), Column("adj val loss"))
BYTES_COLUMN = Column(NATS_PER_BYTE)
"""Column of tables that rank by it."""
BEST_EPOCH_COLUMN, RUN_COLUMN = Column("best epoch"), Column("run", is_numeric=False)
REFERENCE_COLUMNS = (*KEY_COLUMNS, *LOSS_COLUMNS, BEST_EPOCH_COLUMN, RUN_COLUMN)
"""Columns of the reference table."""


@dataclass(frozen=True)
class Table:
    """Table of text cells, independent of its format."""

    columns: tuple[Column, ...]
    rows: list[list[str]]
    notes: list[str]
    """Remarks on rows, shown below the table."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)


@dataclass(frozen=True)
class SeedGroup:
    """Rows that differ in their seed only: one line of the table."""

    rows: list[Row]

    @property
    def config(self) -> TrialConfig:
        """Config of the first row."""
        return self.rows[0].config

    @property
    def metrics(self) -> list[EvalMetrics]:
        """Losses to average: of the done rows, or of a single row with any status."""
        rows = self.rows if len(self.rows) == 1 else [row for row in self.rows if row.status == DONE]
        return [row.metrics for row in rows if row.metrics]

    @property
    def has_rising_loss(self) -> bool:
        """True if the training loss of any row rises at the end."""
        checkpoints = (row.latest_checkpoint for row in self.rows)
        return any(checkpoint is not None and checkpoint.progress.is_loss_rising for checkpoint in checkpoints)


def sort_rows(results: SweepRows) -> list[Row]:
    """Return the rows ordered by dataset, model size, context length and batch size, ties as in the sweep."""
    datasets = list(dict.fromkeys(row.config.dataset for row in results.rows))
    models = [*MODELS, *dict.fromkeys(row.config.model for row in results.rows if row.config.model not in MODELS)]

    def sort_key(row: Row) -> tuple[int, int, int, int]:
        config = row.config
        return datasets.index(config.dataset), models.index(config.model), config.context_length, config.batch_size

    return sorted(results.rows, key=sort_key)


def group_by_seed(results: SweepRows) -> list[SeedGroup]:
    """Return the rows in the order of `sort_rows`, those that differ in their seed only as one group."""
    groups: dict[str, list[Row]] = {}
    for row in sort_rows(results):
        groups.setdefault(repr({**row.config.as_dict(), "seed": None}), []).append(row)
    return [SeedGroup(rows) for rows in groups.values()]


def build_table(results: SweepRows, reference: ReferenceTable | None = None) -> Table:
    """Return the table of a sweep.

    Args:
        results: rows of any status.
        reference: values to compare with; its columns are added if it has any of the rows.
    """
    layout = _Layout.of(results, reference)
    columns = list(KEY_COLUMNS)
    for column in LOSS_COLUMNS:
        columns += [column, Column("ref"), Column("diff")] if layout.has_reference else [column]
    columns += [BYTES_COLUMN] if layout.nats_per_byte is not None else []
    columns += [Column(f"val at {length}") for length in layout.context_lengths]
    columns += [Column("test loss")] if layout.has_test_loss else []
    columns += [BEST_EPOCH_COLUMN, *([Column("n")] if layout.has_seeds else []), RUN_COLUMN]
    compared = [row for group, reference_row in layout.lines if reference_row for row in group.rows]
    notes = _collect_notes(layout, reference if layout.has_reference else None)
    notes += collect_notes(results, compared)
    return Table(tuple(columns), [list(_format_cells(layout, *line)) for line in layout.lines], notes)


@dataclass(frozen=True)
class _Layout:
    """Lines of a table and the optional columns that they need."""

    lines: list[tuple[SeedGroup, ReferenceRow | None]]
    """Rows of each line, with their row of the reference."""
    has_reference: bool
    has_seeds: bool
    context_lengths: list[int]
    """Other context lengths with evaluations, in tokens, ascending."""
    has_test_loss: bool
    nats_per_byte: dict[str, float] | None
    """Nats per byte by trial id, of rows with a loss that compares; None if no dataset is ranked by them."""
    lossy_ids: frozenset[str]
    """Ids of trials whose tokenizer loses text."""

    @classmethod
    def of(cls, results: SweepRows, reference: ReferenceTable | None) -> _Layout:
        """Return the layout for these rows."""
        groups = group_by_seed(results)
        lines = [(group, reference.find_row(group.config) if reference else None) for group in groups]
        lengths = {length for group in groups for row in group.rows for length in row.length_evals}
        per_byte: dict[str, float] | None = None
        if any(measure.name == NATS_PER_BYTE for measure in results.measures.values()):
            values = {row.config.id: results.nats_per_byte(row) for row in results.rows if _is_compared(results, row)}
            per_byte = {trial_id: value for trial_id, value in values.items() if value is not None}
        return cls(
            lines,
            has_reference=any(row is not None for _, row in lines),
            has_seeds=any(len(group.rows) > 1 for group in groups),
            context_lengths=sorted(lengths),
            has_test_loss=any(row.test_loss is not None for group in groups for row in group.rows),
            nats_per_byte=per_byte,
            lossy_ids=frozenset(row.config.id for row in lossy_rows(results)),
        )


def _is_compared(results: SweepRows, row: Row) -> bool:
    return results.ranked_loss(row) is not None


def _format_cells(layout: _Layout, group: SeedGroup, reference_row: ReferenceRow | None) -> Iterator[str]:
    """Yield the cells of a line."""
    config, metrics = group.config, group.metrics
    yield from (config.dataset, str(config.context_length), config.model, str(config.batch_size))
    for number, name in enumerate(LOSS_NAMES):
        values = [getattr(evaluation, name) for evaluation in metrics]
        text = format_mean_interval(values)
        yield f"{text} ({RISING_LOSS})" if number == 0 and values and group.has_rising_loss else text
        if layout.has_reference:
            expected = reference_row.losses[number] if reference_row else None
            yield MISSING if expected is None else f"{expected:.2f}"
            yield MISSING if expected is None or not values else f"{statistics.fmean(values) - expected:+.2f}"
    if layout.nats_per_byte is not None:
        rows = group.rows if len(group.rows) == 1 else [row for row in group.rows if row.status == DONE]
        per_byte = [layout.nats_per_byte[row.config.id] for row in rows if row.config.id in layout.nats_per_byte]
        yield format_mean_interval(per_byte, digits=3)
    for length in layout.context_lengths:
        own = [evaluation.val_loss for evaluation in metrics] if length == config.context_length else []
        yield format_mean_interval(
            own or [row.length_evals[length] for row in group.rows if length in row.length_evals]
        )
    if layout.has_test_loss:
        yield format_mean_interval([row.test_loss for row in group.rows if row.test_loss is not None])
    yield ", ".join(str(epoch) for epoch in sorted({evaluation.epoch for evaluation in metrics})) or MISSING
    if layout.has_seeds:
        yield str(len(metrics))
    yield _format_run(group, LOSSY_MARK if config.id in layout.lossy_ids else "")


def format_mean_interval(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean and, for two or more values, half the width of its 95 % confidence interval (Student's t)."""
    if not values:
        return MISSING
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    half = student_t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.{digits}f} ± {half:.{digits}f}"


def student_t_quantile(degrees_of_freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t; above ten degrees by Abramowitz and Stegun 26.7.5."""
    if degrees_of_freedom <= len(T_QUANTILES):
        return T_QUANTILES[degrees_of_freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * degrees_of_freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees_of_freedom**2)


def _format_run(group: SeedGroup, remark: str) -> str:
    """Return the run name with the statuses of rows that are not done, and a remark."""
    name = group.config.run_name
    if len(group.rows) > 1:
        seeds = " ".join(str(row.config.seed) for row in group.rows)
        name = f"{_name_without_seed(group.config)} (seeds {seeds})"
    unfinished = [row.status for row in group.rows if row.status != DONE]
    counts = {status: unfinished.count(status) for status in unfinished}
    remarks = [f"{count} {status}" if len(group.rows) > 1 else status for status, count in counts.items()]
    remarks += [remark] if remark else []
    return f"{name} ({', '.join(remarks)})" if remarks else name


def _name_without_seed(config: TrialConfig) -> str:
    """Return the readable part of a run name, without seed and id."""
    parts = config.run_name.split("-")[:-1]
    return "-".join(parts[:-1] if config.seed and parts[-1] == f"s{config.seed}" else parts)


def _collect_notes(layout: _Layout, reference: ReferenceTable | None) -> list[str]:
    """Return the reasons of rows, the remarks of the reference and its suspicious rows."""
    rows = [row for group, _ in layout.lines for row in group.rows]
    notes = [f"{row.config.run_name} {row.status}: {row.reason}" for row in rows if row.reason]
    if reference is not None:
        compared = [row for _, row in layout.lines if row is not None]
        notes += [f"reference, {row.label}: {row.note}" for row in compared if row.note]
        notes += [
            f"reference, {row.label}: same three losses as {first.label}, probably a copying error in the reference"
            for first, row in reference.find_duplicates()
            if row in compared
        ]
    return notes
