"""Cells of a table: its columns in their order, each with the function that formats a line's cell. No torch."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from raylm.config.trial import TrialConfig
from raylm.report.notes import LOSSY_MARK, lossy_rows
from raylm.report.reference import ReferenceRow, ReferenceTable
from raylm.report.tables.columns import (
    BEST_EPOCH_COLUMN,
    BYTES_COLUMN,
    KEY_COLUMNS,
    LOSS_COLUMNS,
    RUN_COLUMN,
    SEEDS_COLUMN,
    TEST_COLUMN,
    ZERO_SHOT_COLUMN,
    Column,
    format_field_columns,
    list_swept_columns,
)
from raylm.report.tables.groups import MISSING, SeedGroup, format_mean_interval, group_by_seed
from raylm.results.measures import NATS_PER_BYTE
from raylm.results.progress import LOSS_NAMES
from raylm.results.rows import DONE, Row, SweepRows

BEST_MARK = "best"
"""Remark on the row with the lowest loss of its dataset, by the measure that the dataset is ranked by."""
RISING_LOSS = "loss going up"
"""Remark of the reference table on a training loss that rises."""

FormatCell = Callable[[SeedGroup, ReferenceRow | None], str]
"""Returns the cell of a line: its rows, and their row of the reference."""


@dataclass(frozen=True)
class Layout:
    """Lines of a table and the optional columns that they need."""

    lines: list[tuple[SeedGroup, ReferenceRow | None]]
    """Rows of each line, with their row of the reference."""
    has_reference: bool
    has_seeds: bool
    context_lengths: list[int]
    """Other context lengths with evaluations, in tokens, ascending."""
    has_zero_shot: bool
    has_test_loss: bool
    nats_per_byte: dict[str, float] | None
    """Nats per byte by trial id, of rows with a loss that compares; None if no dataset is ranked by them."""
    lossy_ids: frozenset[str]
    """Ids of trials whose tokenizer loses text."""
    best_ids: frozenset[str]
    """Ids of the first trials of lines that are marked as best."""

    @classmethod
    def of(cls, results: SweepRows, reference: ReferenceTable | None) -> Layout:
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
            has_zero_shot=any(row.zero_shot_loss is not None for group in groups for row in group.rows),
            has_test_loss=any(row.test_loss is not None for group in groups for row in group.rows),
            nats_per_byte=per_byte,
            lossy_ids=frozenset(row.config.id for row in lossy_rows(results)),
            best_ids=_find_best_lines(results, groups),
        )


def _is_compared(results: SweepRows, row: Row) -> bool:
    return results.ranked_loss(row) is not None


def _find_best_lines(results: SweepRows, groups: Sequence[SeedGroup]) -> frozenset[str]:
    """Return the ids of the first trials of lines that contain the best trial of a dataset with several lines."""
    datasets = [group.config.dataset for group in groups]
    best = {row.config.id for dataset, row in results.best_by_dataset.items() if datasets.count(dataset) > 1}
    return frozenset(group.config.id for group in groups if any(row.config.id in best for row in group.rows))


def list_cells(layout: Layout) -> list[tuple[Column, FormatCell]]:
    """Return the columns in their order, with the function that formats a line's cell."""
    groups = [group for group, _ in layout.lines]
    configs = [group.config for group in groups]
    cells: list[tuple[Column, FormatCell]] = []
    for column in (*KEY_COLUMNS, *list_swept_columns(configs, *(["seed"] if layout.has_seeds else []))):
        texts = [str(getattr(config, column.key)) for config in configs]
        if column.is_swept:
            texts = [text for (text,) in format_field_columns(configs, [column])]
        by_id = {config.id: text for config, text in zip(configs, texts, strict=True)}
        cells.append((column, lambda group, _, by_id=by_id: by_id[group.config.id]))  # type: ignore[misc]
    for number, column in enumerate(LOSS_COLUMNS):
        cells += _list_loss_cells(layout, number, column)
    if (per_byte := layout.nats_per_byte) is not None:
        cells.append((BYTES_COLUMN, lambda group, _: _format_per_byte(group, per_byte)))
    if layout.has_zero_shot:
        cells.append((ZERO_SHOT_COLUMN, lambda group, _: _format_means(row.zero_shot_loss for row in group.rows)))
    for length in layout.context_lengths:
        cells.append((_length_column(length), lambda group, _, length=length: _format_val_at(group, length)))  # type: ignore[misc]
    if layout.has_test_loss:
        cells.append((TEST_COLUMN, lambda group, _: _format_means(row.test_loss for row in group.rows)))
    cells.append((BEST_EPOCH_COLUMN, lambda group, _: _format_epochs(group)))
    if layout.has_seeds:
        cells.append((SEEDS_COLUMN, lambda group, _: str(len(group.metrics))))
    cells.append((RUN_COLUMN, lambda group, _: _format_run(group, layout)))
    return cells


def _list_loss_cells(layout: Layout, number: int, column: Column) -> list[tuple[Column, FormatCell]]:
    """Return a column of losses, and the reference's value and the difference beside it if there are any."""
    name = LOSS_NAMES[number]

    def values(group: SeedGroup) -> list[float]:
        return [getattr(evaluation, name) for evaluation in group.metrics]

    def format_loss(group: SeedGroup, _: ReferenceRow | None) -> str:
        text = format_mean_interval(values(group))
        return f"{text} ({RISING_LOSS})" if number == 0 and values(group) and group.has_rising_loss else text

    def format_reference(_: SeedGroup, row: ReferenceRow | None) -> str:
        return MISSING if row is None or row.losses[number] is None else f"{row.losses[number]:.2f}"

    def format_difference(group: SeedGroup, row: ReferenceRow | None) -> str:
        expected = row.losses[number] if row else None
        if expected is None or not values(group):
            return MISSING
        return f"{statistics.fmean(values(group)) - expected:+.2f}"

    if not layout.has_reference:
        return [(column, format_loss)]
    reference_column, difference_column = Column("ref", key=f"reference_{name}"), Column("diff", key=f"diff_{name}")
    return [(column, format_loss), (reference_column, format_reference), (difference_column, format_difference)]


def _length_column(length: int) -> Column:
    return Column(f"val at {length}", key=f"val_loss_at_{length}")


def _format_per_byte(group: SeedGroup, per_byte: dict[str, float]) -> str:
    rows = group.rows if len(group.rows) == 1 else [row for row in group.rows if row.status == DONE]
    return format_mean_interval([per_byte[row.config.id] for row in rows if row.config.id in per_byte], digits=3)


def _format_val_at(group: SeedGroup, length: int) -> str:
    own = [evaluation.val_loss for evaluation in group.metrics] if length == group.config.context_length else []
    return format_mean_interval(own or [row.length_evals[length] for row in group.rows if length in row.length_evals])


def _format_means(losses: Iterable[float | None]) -> str:
    return format_mean_interval([loss for loss in losses if loss is not None])


def _format_epochs(group: SeedGroup) -> str:
    return ", ".join(str(epoch) for epoch in sorted({evaluation.epoch for evaluation in group.metrics})) or MISSING


def _format_run(group: SeedGroup, layout: Layout) -> str:
    """Return the run name with the statuses of rows that are not done, and remarks."""
    name = group.config.run_name
    if len(group.rows) > 1:
        seeds = " ".join(str(row.config.seed) for row in group.rows)
        name = f"{_name_without_seed(group.config)} (seeds {seeds})"
    remarks = group.unfinished_statuses
    remarks += [BEST_MARK] if group.config.id in layout.best_ids else []
    remarks += [LOSSY_MARK] if group.config.id in layout.lossy_ids else []
    return f"{name} ({', '.join(remarks)})" if remarks else name


def _name_without_seed(config: TrialConfig) -> str:
    """Return the readable part of a run name, without seed and id."""
    parts = config.run_name.split("-")[:-1]
    return "-".join(parts[:-1] if config.seed and parts[-1] == f"s{config.seed}" else parts)
