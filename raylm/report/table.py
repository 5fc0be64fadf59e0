"""Rows to a table of words: in the reference's order, seeds together, the reference beside. No torch, no Ray."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from raylm.config.catalog import MODELS
from raylm.report.reference import ReferenceRow, ReferenceTable
from raylm.results.progress import EvalMetrics
from raylm.results.rows import DONE, Results, Row

COLUMN_NAMES = (
    "dataset",
    "context len",
    "model",
    "batch size",
    "train loss",
    "val loss",
    "adj val loss",
    "best epoch",
    "run",
)
"""The columns of the reference table."""
MISSING = "–"
RISING_LOSS = "loss going up"
T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t with 1 to 10 degrees of freedom."""


@dataclass(frozen=True)
class Table:
    """A table of words, for any renderer."""

    column_names: tuple[str, ...]
    rows: list[list[str]]
    notes: list[str]
    """What is to be said below it."""


@dataclass(frozen=True)
class SeedGroup:
    """One line of the table: the rows that differ in nothing but their seed."""

    rows: list[Row]

    @property
    def metrics(self) -> list[EvalMetrics]:
        """What its losses are taken from: its finished rows; where it has but one row, that one as far as it is."""
        rows = self.rows if len(self.rows) == 1 else [row for row in self.rows if row.status == DONE]
        return [row.metrics for row in rows if row.metrics]

    @property
    def going_up(self) -> bool:
        """Whether the training loss of any of its rows went up in the end."""
        return any(
            row.latest_checkpoint is not None and row.latest_checkpoint.progress.is_loss_rising for row in self.rows
        )


def sort_rows(results: Results) -> list[Row]:
    """The rows by dataset, model size, context length and batch size, else as the sweep has them."""
    datasets = list(dict.fromkeys(row.config.dataset for row in results.rows))
    models = [*MODELS, *dict.fromkeys(row.config.model for row in results.rows if row.config.model not in MODELS)]

    def sort_key(row: Row) -> tuple[int, int, int, int]:
        config = row.config
        return (
            datasets.index(config.dataset),
            models.index(config.model),
            config.context_length,
            config.batch_size,
        )

    return sorted(results.rows, key=sort_key)


def group_by_seed(results: Results) -> list[SeedGroup]:
    """The rows in order, those that differ only in their seed on one line."""
    grouped: dict[str, list[Row]] = {}
    for row in sort_rows(results):
        grouped.setdefault(_seed_group_key(row), []).append(row)
    return [SeedGroup(rows) for rows in grouped.values()]


def _seed_group_key(row: Row) -> str:
    """What rows have in common that differ only in their seed."""
    return repr({**row.config.as_dict(), "seed": None})


def build_table(results: Results, reference: ReferenceTable | None = None) -> Table:
    """The table of some results, with the reference's values and the differences to them where it has the row."""
    all_lines = group_by_seed(results)
    beside = [reference.find_row(line.rows[0].config) if reference else None for line in all_lines]
    compared, seeds = any(beside), any(len(line.rows) > 1 for line in all_lines)
    headings = list(COLUMN_NAMES[:4])
    for name in COLUMN_NAMES[4:7]:
        headings += [name, "ref", "diff"] if compared else [name]
    lengths = sorted({length for line in all_lines for row in line.rows for length in row.length_evals})
    headings += [f"val at {length}" for length in lengths]
    headings += [COLUMN_NAMES[7], *(["n"] if seeds else []), COLUMN_NAMES[8]]
    cells = [_format_cells(line, row, compared, lengths, seeds) for line, row in zip(all_lines, beside, strict=True)]
    return Table(tuple(headings), cells, _collect_notes(all_lines, reference if compared else None, beside))


def _format_cells(
    group: SeedGroup,
    reference_row: ReferenceRow | None,
    has_reference: bool,
    context_lengths: Sequence[int],
    show_seeds: bool,
) -> list[str]:
    config = group.rows[0].config
    cells = [config.dataset, str(config.context_length), config.model, str(config.batch_size)]
    for number, name in enumerate(("train_loss", "val_loss", "adj_val_loss")):
        values = [getattr(measured, name) for measured in group.metrics]
        text = format_mean_interval(values)
        cells.append(f"{text} ({RISING_LOSS})" if number == 0 and values and group.going_up else text)
        if has_reference:
            cells.append(f"{reference_row.losses[number]:.2f}" if reference_row else MISSING)
            cells.append(
                f"{statistics.fmean(values) - reference_row.losses[number]:+.2f}"
                if reference_row and values
                else MISSING
            )
    for length in context_lengths:
        own = [measured.val_loss for measured in group.metrics] if length == config.context_length else []
        cells.append(
            format_mean_interval(own or [row.length_evals[length] for row in group.rows if length in row.length_evals])
        )
    epochs = sorted({measured.epoch for measured in group.metrics})
    cells.append(", ".join(map(str, epochs)) or MISSING)
    return [*cells, *([str(len(group.metrics))] if show_seeds else []), _format_run(group)]


def format_mean_interval(values: Sequence[float]) -> str:
    """A mean and, from two values on, half the width of its 95 % interval by Student's t."""
    if not values:
        return MISSING
    if len(values) == 1:
        return f"{values[0]:.2f}"
    half = student_t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.2f} ± {half:.2f}"


def student_t_quantile(degrees_of_freedom: int) -> float:
    """The 97.5 % quantile of Student's t; above ten degrees from Abramowitz and Stegun 26.7.5."""
    if degrees_of_freedom <= len(T_QUANTILES):
        return T_QUANTILES[degrees_of_freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * degrees_of_freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees_of_freedom**2)


def _format_run(group: SeedGroup) -> str:
    first = group.rows[0]
    name = first.config.run_name
    if len(group.rows) > 1:
        seeds = " ".join(str(row.config.seed) for row in group.rows)
        name = f"{_name_without_seed(first)} (seeds {seeds})"
    others = [row.status for row in group.rows if row.status != DONE]
    count = {status: others.count(status) for status in others}
    told = ", ".join(f"{n} {status}" if len(group.rows) > 1 else status for status, n in count.items())
    return f"{name} ({told})" if told else name


def _name_without_seed(row: Row) -> str:
    """The readable part of a run's name, without seed and id."""
    parts = row.config.run_name.split("-")[:-1]
    return "-".join(parts[:-1] if row.config.seed and parts[-1] == f"s{row.config.seed}" else parts)


def _collect_notes(
    groups: Sequence[SeedGroup], reference: ReferenceTable | None, reference_rows: Sequence[ReferenceRow | None]
) -> list[str]:
    notes = [f"{row.config.run_name} {row.status}: {row.reason}" for line in groups for row in line.rows if row.reason]
    if reference is not None:
        notes += [f"reference, {row.label}: {row.note}" for row in reference_rows if row is not None and row.note]
        notes += [
            f"reference, {again.label}: the same three losses as {first.label}; probably a copying error there"
            for first, again in reference.find_duplicates()
            if again in reference_rows
        ]
    return notes
