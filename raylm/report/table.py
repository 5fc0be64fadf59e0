"""Rows to a table of words: in the reference's order, seeds together, the reference beside. No torch, no Ray."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from raylm.config.catalog import MODELS
from raylm.report.reference import Reference, ReferenceRow
from raylm.results.progress import Measured
from raylm.results.rows import DONE, Results, Row

HEADINGS = (
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
NOTHING = "–"
GOING_UP = "loss going up"
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5 % quantiles of Student's t with 1 to 10 degrees of freedom."""


@dataclass(frozen=True)
class Table:
    """A table of words, for any renderer."""

    headings: tuple[str, ...]
    lines: list[list[str]]
    notes: list[str]
    """What is to be said below it."""


@dataclass(frozen=True)
class Line:
    """One line of the table: the rows that differ in nothing but their seed."""

    rows: list[Row]

    @property
    def measured(self) -> list[Measured]:
        """What its losses are taken from: its finished rows; where it has but one row, that one as far as it is."""
        rows = self.rows if len(self.rows) == 1 else [row for row in self.rows if row.status == DONE]
        return [row.measured for row in rows if row.measured]

    @property
    def going_up(self) -> bool:
        """Whether the training loss of any of its rows went up in the end."""
        return any(row.latest is not None and row.latest.progress.going_up for row in self.rows)


def ordered(results: Results) -> list[Row]:
    """The rows by dataset, model size, context length and batch size, else as the sweep has them."""
    datasets = list(dict.fromkeys(row.config.dataset for row in results.rows))
    models = [*MODELS, *dict.fromkeys(row.config.model for row in results.rows if row.config.model not in MODELS)]

    def place(row: Row) -> tuple[int, int, int, int]:
        config = row.config
        return (
            datasets.index(config.dataset),
            models.index(config.model),
            config.context_length,
            config.batch_size,
        )

    return sorted(results.rows, key=place)


def lines(results: Results) -> list[Line]:
    """The rows in order, those that differ only in their seed on one line."""
    grouped: dict[str, list[Row]] = {}
    for row in ordered(results):
        grouped.setdefault(_without_seed(row), []).append(row)
    return [Line(rows) for rows in grouped.values()]


def _without_seed(row: Row) -> str:
    """What rows have in common that differ only in their seed."""
    return repr({**row.config.as_dict(), "seed": None})


def build(results: Results, reference: Reference | None = None) -> Table:
    """The table of some results, with the reference's values and the differences to them where it has the row."""
    all_lines = lines(results)
    beside = [reference.row(line.rows[0].config) if reference else None for line in all_lines]
    compared, seeds = any(beside), any(len(line.rows) > 1 for line in all_lines)
    headings = list(HEADINGS[:4])
    for name in HEADINGS[4:7]:
        headings += [name, "ref", "diff"] if compared else [name]
    lengths = sorted({length for line in all_lines for row in line.rows for length in row.elsewhere})
    headings += [f"val at {length}" for length in lengths]
    headings += [HEADINGS[7], *(["n"] if seeds else []), HEADINGS[8]]
    cells = [_cells(line, row, compared, lengths, seeds) for line, row in zip(all_lines, beside, strict=True)]
    return Table(tuple(headings), cells, _notes(all_lines, reference if compared else None, beside))


def _cells(line: Line, beside: ReferenceRow | None, compared: bool, lengths: Sequence[int], seeds: bool) -> list[str]:
    config = line.rows[0].config
    cells = [config.dataset, str(config.context_length), config.model, str(config.batch_size)]
    for number, name in enumerate(("train_loss", "val_loss", "adj_val_loss")):
        values = [getattr(measured, name) for measured in line.measured]
        text = with_interval(values)
        cells.append(f"{text} ({GOING_UP})" if number == 0 and values and line.going_up else text)
        if compared:
            cells.append(f"{beside.losses[number]:.2f}" if beside else NOTHING)
            cells.append(f"{statistics.fmean(values) - beside.losses[number]:+.2f}" if beside and values else NOTHING)
    for length in lengths:
        own = [measured.val_loss for measured in line.measured] if length == config.context_length else []
        cells.append(with_interval(own or [row.elsewhere[length] for row in line.rows if length in row.elsewhere]))
    epochs = sorted({measured.epoch for measured in line.measured})
    cells.append(", ".join(map(str, epochs)) or NOTHING)
    return [*cells, *([str(len(line.measured))] if seeds else []), _run(line)]


def with_interval(values: Sequence[float]) -> str:
    """A mean and, from two values on, half the width of its 95 % interval by Student's t."""
    if not values:
        return NOTHING
    if len(values) == 1:
        return f"{values[0]:.2f}"
    half = student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.fmean(values):.2f} ± {half:.2f}"


def student_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t; above ten degrees from Abramowitz and Stegun 26.7.5."""
    if degrees <= len(T_95):
        return T_95[degrees - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _run(line: Line) -> str:
    first = line.rows[0]
    name = first.config.run_name
    if len(line.rows) > 1:
        seeds = " ".join(str(row.config.seed) for row in line.rows)
        name = f"{_unseeded(first)} (seeds {seeds})"
    others = [row.status for row in line.rows if row.status != DONE]
    count = {status: others.count(status) for status in others}
    told = ", ".join(f"{n} {status}" if len(line.rows) > 1 else status for status, n in count.items())
    return f"{name} ({told})" if told else name


def _unseeded(row: Row) -> str:
    """The readable part of a run's name, without seed and id."""
    parts = row.config.run_name.split("-")[:-1]
    return "-".join(parts[:-1] if row.config.seed and parts[-1] == f"s{row.config.seed}" else parts)


def _notes(all_lines: Sequence[Line], reference: Reference | None, beside: Sequence[ReferenceRow | None]) -> list[str]:
    notes = [
        f"{row.config.run_name} {row.status}: {row.reason}" for line in all_lines for row in line.rows if row.reason
    ]
    if reference is not None:
        notes += [f"reference, {row.name}: {row.note}" for row in beside if row is not None and row.note]
        notes += [
            f"reference, {again.name}: the same three losses as {first.name}; probably a copying error there"
            for first, again in reference.repeated()
            if again in beside
        ]
    return notes
