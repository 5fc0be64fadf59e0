"""Several sweeps side by side: a line per configuration, val losses of each sweep, differences from the first."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.report.select.differences import describe_differences
from raylm.report.tables.columns import KEY_COLUMNS, Column, format_field_columns, list_swept_columns
from raylm.report.tables.groups import MISSING, SeedGroup, format_mean_interval, group_by_seed, student_t_quantile
from raylm.report.tables.sheet import Sheet
from raylm.results.rows import DONE, Row, SweepRows

DIGITS = 3
"""Digits of losses and differences after the point: sweeps that are compared are often close."""


@dataclass(frozen=True)
class Difference:
    """Mean val loss of a sweep minus that of the first, for one configuration."""

    mean: float
    half_interval: float | None = None
    """Half the width of the 95 % confidence interval; None without two seeds in both."""

    @property
    def is_significant(self) -> bool:
        """True if the interval does not contain zero."""
        return self.half_interval is not None and abs(self.mean) > self.half_interval

    def format(self) -> str:
        """Return the difference with its sign, and its interval if there is one."""
        text = f"{self.mean:+.{DIGITS}f}"
        return text if self.half_interval is None else f"{text} ± {self.half_interval:.{DIGITS}f}"


@dataclass(frozen=True)
class Comparison:
    """Sweeps side by side."""

    labels: list[str]
    """Name of each sweep, all different."""
    groups: list[list[SeedGroup | None]]
    """Rows of each configuration in each sweep, those that differ in their seed together; None if it has none."""
    notes: list[str]
    """Remarks on what does not compare."""

    @property
    def configs(self) -> list[TrialConfig]:
        """Configuration of each line, with one of its seeds."""
        return [next(group.config for group in line if group is not None) for line in self.groups]

    def as_records(self) -> list[dict[str, Any]]:
        """Return the numbers of each line in full precision."""
        records = []
        for config, line in zip(self.configs, self.groups, strict=True):
            record: dict[str, Any] = {key: value for key, value in config.as_dict().items() if key != "seed"}
            for label, group in zip(self.labels, line, strict=True):
                losses = list(_losses(group).values())
                record[f"val_loss {label}"] = statistics.fmean(losses) if losses else None
                record[f"n {label}"] = len(losses)
            for label, group in zip(self.labels[1:], line[1:], strict=True):
                difference = find_difference(line[0], group)
                record[f"difference {label}"] = difference.mean if difference else None
                record[f"half_interval {label}"] = difference.half_interval if difference else None
            records.append(record)
        return records


def compare_sweeps(sweeps: Sequence[SweepRows]) -> Comparison:
    """Return results of several sweeps side by side, with notes where data, versions or precision differ."""
    labels = _choose_labels(sweeps)
    lines: dict[tuple[Any, ...], list[SeedGroup | None]] = {}
    for number, results in enumerate(sweeps):
        for group in group_by_seed(results):
            lines.setdefault(group.config.key_without("seed"), [None] * len(sweeps))[number] = group
    first = {key: next(group for group in line if group is not None) for key, line in lines.items()}
    one_each = dataclasses.replace(sweeps[0], rows=[group.rows[0] for group in first.values()], is_ordered=False)
    position = {group.config.id: number for number, group in enumerate(group_by_seed(one_each))}
    ordered = sorted(lines, key=lambda key: position[first[key].config.id])
    groups = [lines[key] for key in ordered]
    shared = sum(all(line) for line in groups)
    notes = [f"{shared} of {len(groups)} configurations are in all sweeps"] if shared < len(groups) else []
    return Comparison(labels, groups, [*notes, *describe_differences(sweeps, labels)])


def _choose_labels(sweeps: Sequence[SweepRows]) -> list[str]:
    """Return the names of the sweeps, or as many parts of their locations as tell them apart."""
    uris = [results.storage.uri.rstrip("/").split("/") for results in sweeps]
    for length in range(1, max(map(len, uris)) + 1):
        labels = ["/".join(parts[-length:]) for parts in uris]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{number}: {labels[number - 1]}" for number in range(1, len(sweeps) + 1)]


def _losses(group: SeedGroup | None) -> dict[int, float]:
    """Return the val losses of the done rows by seed, in nats per token."""
    rows: Iterable[Row] = group.rows if group else ()
    return {row.config.seed: row.metrics.val_loss for row in rows if row.status == DONE and row.metrics}


def find_difference(first: SeedGroup | None, other: SeedGroup | None) -> Difference | None:
    """Return the difference of the mean val losses; None if either has no done row.

    With the same seeds in both, the interval is that of the mean of the seeds' differences (paired t), else Welch's.
    """
    a, b = _losses(first), _losses(other)
    if not a or not b:
        return None
    mean = statistics.fmean(b.values()) - statistics.fmean(a.values())
    if min(len(a), len(b)) < 2:
        return Difference(mean)
    if a.keys() == b.keys():
        differences = [b[seed] - a[seed] for seed in a]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        return Difference(mean, student_t_quantile(len(differences) - 1) * error)
    variances = [statistics.variance(losses.values()) / len(losses) for losses in (a, b)]
    total = math.fsum(variances)
    if total == 0:
        return Difference(mean, 0.0)
    terms = [variance**2 / (len(losses) - 1) for variance, losses in zip(variances, (a, b), strict=True)]
    degrees = int(total**2 / math.fsum(terms))  # Welch and Satterthwaite's, rounded down: the wider interval
    return Difference(mean, student_t_quantile(max(1, degrees)) * math.sqrt(total))


def build_comparison_sheet(comparison: Comparison) -> Sheet:
    """Return a comparison as it is printed: bold differences are larger than their interval."""
    configs, labels = comparison.configs, comparison.labels
    fields = [*KEY_COLUMNS, *list_swept_columns(configs, "seed")]
    cells = format_field_columns(configs, fields)
    columns = [*fields, *(Column(f"val loss {label}", key=f"val_loss {label}") for label in labels)]
    columns += [Column(f"diff {label}", key=f"difference {label}") for label in labels[1:]]
    has_seeds = any(group is not None and len(group.rows) > 1 for line in comparison.groups for group in line)
    columns += [Column(f"n {label}") for label in labels] if has_seeds else []
    rows, bold = [], set()
    for number, line in enumerate(comparison.groups):
        differences = [find_difference(line[0], group) for group in line[1:]]
        start = len(fields) + len(labels)
        bold |= {(number, start + place) for place, found in enumerate(differences) if found and found.is_significant}
        texts = [*map(_format_loss, line), *(found.format() if found else MISSING for found in differences)]
        rows.append([*cells[number], *texts, *([str(len(_losses(group))) for group in line] if has_seeds else [])])
    datasets = [config.dataset for config in configs]
    breaks = frozenset(number for number in range(1, len(datasets)) if datasets[number] != datasets[number - 1])
    notes = [f"diff: val loss minus that of {labels[0]}", *comparison.notes]
    return Sheet(
        tuple(columns),
        rows,
        notes,
        frozenset(bold),
        breaks=breaks,
        bold_meaning="differs by more than the 95 % interval",
    )


def _format_loss(group: SeedGroup | None) -> str:
    """Return the mean and interval of the val losses, or the status of rows that are not done."""
    losses = list(_losses(group).values())
    if losses:
        return format_mean_interval(losses, DIGITS)
    return ", ".join(dict.fromkeys(row.status for row in group.rows)) if group else MISSING
