"""Rows to tables: Markdown for people, CSV for programs. No torch, no Ray."""

from __future__ import annotations

import csv
import io
import os
from typing import Any

from raylm import manifest
from raylm.errors import counted
from raylm.results import DIVERGED, DONE, FAILED, Results, Row

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


def cells(row: Row) -> list[str]:
    """A row as the table shows it: losses to two decimals, as the reference; a dash for what there is not."""
    config, measured = row.config, row.measured
    losses = ["–"] * 3 + ["–"]
    if measured is not None:
        losses = [f"{loss:.2f}" for loss in (measured.train_loss, measured.val_loss, measured.adj_val_loss)]
        losses.append(str(measured.epoch))
    run = config.run_name if row.status == DONE else f"{config.run_name} ({row.status})"
    return [config.dataset, str(config.context_length), config.model, str(config.batch_size), *losses, run]


def markdown(results: Results) -> str:
    """The table, and below it why rows have failed or diverged."""
    lines = [" | ".join(HEADINGS), " | ".join("---" for _ in HEADINGS)]
    lines += [" | ".join(cell.replace("|", "\\|") for cell in cells(row)) for row in results.rows]
    table = "\n".join(f"| {line} |" for line in lines)
    notes = [f"- {row.config.run_name} {row.status}: {row.reason}" for row in results.rows if row.reason]
    return "\n".join([table, *(["", *notes] if notes else []), ""])


def record(row: Row, results: Results) -> dict[str, Any]:
    """All that is known of a row, by column of results.csv; empty for what there is not."""
    config, measured = row.config, row.measured
    progress = row.latest.progress if row.latest else None
    named: dict[str, Any] = {
        "dataset": config.dataset,
        "context_length": config.context_length,
        "model": config.model,
        "batch_size": config.batch_size,
        "train_loss": measured.train_loss if measured else None,
        "val_loss": measured.val_loss if measured else None,
        "adj_val_loss": measured.adj_val_loss if measured else None,
        "best_epoch": measured.epoch if measured else None,
        "run": config.run_name,
        "status": row.status,
        "reason": row.reason,
        "trial_id": config.id,
    }
    named |= {name: value for name, value in config.as_dict().items() if name not in named}
    named |= {
        "steps": progress.step if progress else None,
        "tokens_seen": progress.tokens_seen if progress else None,
        "first_loss": progress.first_loss if progress else None,
        "training_seconds": progress.training_seconds if progress else None,
        "micro_batch_size": progress.micro_batch_size if progress else None,
        "checkpoint": os.path.relpath(row.best.folder, results.folder) if row.best else None,
    }
    return {name: "" if value is None else value for name, value in named.items()}


def csv_text(results: Results) -> str:
    """The rows as CSV, numbers in full."""
    records = [record(row, results) for row in results.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def write(results: Results) -> None:
    """Writes results.md and results.csv into the results folder, where they say something else than before."""
    for name, text in (("results.md", markdown(results)), ("results.csv", csv_text(results))):
        path = results.folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            manifest.write_text(path, text)


def summary(results: Results) -> str:
    """How the rows stand, in a line."""
    numbers = {
        "done": results.count(DONE),
        "diverged": results.count(DIVERGED),
        "failed": results.count(FAILED),
        "to be done": sum(not row.ended for row in results.rows),
    }
    return f"{counted(len(results.rows), 'row')}: " + ", ".join(f"{n} {what}" for what, n in numbers.items() if n)
