"""Tables as text: Markdown for people, CSV for programs. No torch, no Ray."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raylm.config.dataset import DATASET_OPTIONS
from raylm.planning import plan, throughput
from raylm.report.reference import ReferenceTable, load_reference
from raylm.report.tables.columns import find_swept_fields
from raylm.report.tables.groups import sort_rows
from raylm.report.tables.sheet import Sheet
from raylm.report.tables.table import build_table
from raylm.results.folder import parse_launch_number
from raylm.results.measures import perplexity
from raylm.results.progress import LOSS_NAMES
from raylm.results.rows import DIVERGED, DONE, FAILED, STOPPED, Row, SweepRows
from raylm.units import format_duration, pluralize

PRECISION_SUFFIX = "_precision"
"""Ending of the names of columns with the precision of the value beside."""


def format_markdown(results: SweepRows, reference: ReferenceTable | None = None) -> str:
    """Return the table with its notes as a list below."""
    table = build_table(results, reference)
    return format_markdown_sheet(Sheet(table.columns, table.rows, table.notes))


def format_markdown_sheet(sheet: Sheet) -> str:
    """Return a sheet, best cells in bold, with its notes as a list below."""
    cells = [
        [f"**{cell}**" if (row, column) in sheet.bold else cell for column, cell in enumerate(line)]
        for row, line in enumerate(sheet.rows)
    ]
    rows = format_markdown_rows([sheet.column_names, ["---"] * len(sheet.columns), *cells])
    notes = [f"- {note}" for note in sheet.notes]
    return "\n".join([rows, *(["", *notes] if notes else []), ""])


def format_markdown_rows(rows: Iterable[Sequence[str]]) -> str:
    """Return cells as rows of a Markdown table."""
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


# ---- records of rows ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _RecordColumns:
    """Columns of records that depend on all rows of a sweep, found once."""

    swept: list[str]
    """Fields that vary, whose columns come before the losses."""
    unused: frozenset[str]
    """Options of datasets that no row has, which have no column."""
    context_lengths: list[int]
    """Other context lengths with evaluations, in tokens, ascending."""
    has_test_loss: bool
    best_ids: frozenset[str]
    """Ids of the best row of each dataset."""

    @classmethod
    def of(cls, results: SweepRows) -> _RecordColumns:
        """Return the columns of these rows."""
        options = {name for row in results.rows for name in row.config.dataset_spec.options}
        return cls(
            swept=find_swept_fields(row.config for row in results.rows),
            unused=frozenset(name for name in DATASET_OPTIONS if name not in options),
            context_lengths=sorted({length for row in results.rows for length in row.length_evals}),
            has_test_loss=any(row.test_loss is not None for row in results.rows),
            best_ids=frozenset(row.config.id for row in results.best_by_dataset.values()),
        )


def _build_record(
    row: Row,
    results: SweepRows,
    columns: _RecordColumns,
    reference: ReferenceTable | None,
    estimated_seconds: float | None,
) -> dict[str, Any]:
    """Return the values of a row by column of results.csv; None where a value does not exist.

    Args:
        row: row of any status.
        results: all rows of the sweep.
        columns: columns that depend on all rows.
        reference: table to take the reference losses from.
        estimated_seconds: estimated training time of the steps done.
    """
    config, metrics = row.config, row.metrics
    progress = row.latest_checkpoint.progress if row.latest_checkpoint else None
    record: dict[str, Any] = {
        "dataset": config.dataset,
        "context_length": config.context_length,
        "model": config.model,
        "batch_size": config.batch_size,
        **{name: getattr(config, name) for name in columns.swept},
        **{name: getattr(metrics, name, None) for name in LOSS_NAMES},
        "best_epoch": metrics.epoch if metrics else None,
        "run": config.run_name,
        "status": row.status,
        "reason": row.reason or None,
        "trial_id": config.id,
    }
    others = config.as_dict().items()
    record |= {name: value for name, value in others if name not in record and name not in columns.unused}
    record |= {
        "steps": progress.step if progress else None,
        "tokens_seen": progress.tokens_seen if progress else None,
        "first_loss": progress.first_loss if progress else None,
        "training_seconds": progress.training_seconds if progress else None,
        "estimated_seconds": estimated_seconds,
        "micro_batch_size": progress.micro_batch_size if progress else None,
        "recompute": progress.recompute if progress else None,
        "checkpoint": row.best_checkpoint.folder if row.best_checkpoint else None,
        "going_up": progress.is_loss_rising if progress else None,
    }
    for length in columns.context_lengths:
        record[f"val_loss_at_{length}"] = row.length_evals.get(length)
        record[f"val_loss_at_{length}{PRECISION_SUFFIX}"] = row.length_precisions.get(length)
    if columns.has_test_loss:
        record |= {"test_loss": row.test_loss, f"test_loss{PRECISION_SUFFIX}": row.test_precision}
    reference_row = reference.find_row(config) if reference else None
    record |= {f"reference_{name}": getattr(reference_row, name, None) for name in LOSS_NAMES}
    data = results.data.get(config.corpus_key)
    return record | {
        "nats_per_byte": results.nats_per_byte(row),
        "precision": results.find_precision(row),
        "lossless": data.lossless if data and metrics else None,
        "best": config.id in columns.best_ids,
        "perplexity": perplexity(metrics.val_loss) if metrics else None,
        "word_perplexity": perplexity(metrics.adj_val_loss) if metrics else None,
        "bits_per_byte": results.bits_per_byte(row),
        "zero_shot_loss": row.zero_shot_loss,
        f"zero_shot_loss{PRECISION_SUFFIX}": row.zero_shot_precision,
    }


def build_records(results: SweepRows, reference: ReferenceTable | None = None) -> list[dict[str, Any]]:
    """Return the record of each row, in the table's order."""
    estimates, columns = estimate_training_seconds(results), _RecordColumns.of(results)
    rows = sort_rows(results)
    return [_build_record(row, results, columns, reference, estimates.get(row.config.id)) for row in rows]


def format_csv(results: SweepRows, reference: ReferenceTable | None = None) -> str:
    """Return the records as CSV with numbers in full precision; missing values are empty."""
    return format_csv_records(build_records(results, reference))


def format_csv_records(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records with equal names as CSV with numbers in full precision; missing values are empty."""
    return "".join(map(_format_csv_row, [list(records[0]), *(list(record.values()) for record in records)]))


def _format_csv_row(values: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(values)  # which quotes carriage returns; "\n" does not
    return out.getvalue().removesuffix("\r\n") + "\n"


def write_tables(results: SweepRows) -> bool:
    """Write results.md and results.csv into the results folder; return True if either has changed."""
    reference, changed = load_reference(), False
    texts = {"results.md": format_markdown(results, reference), "results.csv": format_csv(results, reference)}
    for name, text in texts.items():
        if not results.storage.has_text(name, text):
            results.storage.write(name, text)
            changed = True
    return changed


# ---- summaries ----------------------------------------------------------------------------------------------------


def format_summary(results: SweepRows) -> str:
    """Return the number of rows by status, and the training time with its estimate, in one line."""
    counts = {status: results.count(status) for status in (DONE, STOPPED, DIVERGED, FAILED)}
    counts["remaining"] = sum(not row.is_finished for row in results.rows)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    summary = f"{pluralize(len(results.rows), 'row')}: {statuses}"
    estimates = estimate_training_seconds(results)
    seconds = sum(
        row.latest_checkpoint.progress.training_seconds
        for row in results.rows
        if row.latest_checkpoint and row.config.id in estimates
    )
    if not seconds:
        return summary
    estimated = format_duration(sum(estimates.values()))
    return f"{summary}; training took {format_duration(seconds)} (estimated: ~{estimated})"


def list_outputs(results: SweepRows) -> list[str]:
    """Return lines with the locations of the report, the tables and the best checkpoints."""
    storage = results.storage
    lines = []
    if "report.html" in storage.list_entries(recursive=False):
        lines.append(f"results: {storage.uri_of('report.html')}, results.md, results.csv")
    for dataset, row in results.best_by_dataset.items():
        if row.best_checkpoint is not None:
            lines.append(f"best checkpoint on {dataset}: {storage.uri_of(row.best_checkpoint.folder)}")
    return lines


def estimate_training_seconds(results: SweepRows) -> dict[str, float]:
    """Return the estimated time of the steps done by trial id, for trials on known devices.

    The estimate is the one that `raylm plan` gives for the device that the launch has recorded, in seconds.
    """
    placements = {
        launch.number: throughput.placement_from_record(launch.slot)
        for launch in results.launches
        if launch.slot is not None
    }
    estimates = {}
    for row in results.rows:
        if (checkpoint := row.latest_checkpoint) is None:
            continue
        placement = placements.get(parse_launch_number(checkpoint.folder.split("/")[0]))
        seconds = plan.estimate_seconds(row.config, checkpoint.progress, placement) if placement else None
        if seconds is not None:
            estimates[row.config.id] = seconds
    return estimates


def to_plain_text(value: Any) -> str:
    """Return recorded data (numbers, text, lists, mappings) as plain text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {to_plain_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(to_plain_text, value)) or "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
