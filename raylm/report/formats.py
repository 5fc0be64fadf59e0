"""Tables as text: Markdown and LaTeX for people, CSV for programs. No torch, no Ray."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raylm.planning import plan, throughput
from raylm.report.reference import LOSS_FIELDS, ReferenceTable, load_reference
from raylm.report.table import build_table, sort_rows
from raylm.results.folder import parse_launch_number
from raylm.results.rows import DIVERGED, DONE, FAILED, STOPPED, Results, Row
from raylm.units import format_duration, pluralize


def format_markdown(results: Results, reference: ReferenceTable | None = None) -> str:
    """The table, and below it what there is to say of its rows."""
    made = build_table(results, reference)
    rows = format_markdown_rows([made.column_names, ["---"] * len(made.column_names), *made.rows])
    notes = [f"- {note}" for note in made.notes]
    return "\n".join([rows, *(["", *notes] if notes else []), ""])


def format_markdown_rows(rows: Iterable[Sequence[str]]) -> str:
    """Cells as rows of a table."""
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
}


def format_latex(results: Results, reference: ReferenceTable | None = None) -> str:
    """The table for a paper: booktabs, a rule between datasets, notes as comments."""
    made = build_table(results, reference)

    def format_row(cells: Sequence[str]) -> str:
        return (
            " & ".join("".join(LATEX_ESCAPES.get(character, character) for character in cell) for cell in cells)
            + r" \\"
        )

    columns = "".join("l" if name in ("dataset", "model", "run") else "r" for name in made.column_names)
    text = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", format_row(made.column_names)]
    dataset = None
    for cells in made.rows:
        if cells[0] != dataset:
            text.append(r"\midrule")
        dataset = cells[0]
        text.append(format_row(cells))
    text += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in made.notes)]
    return "\n".join([*text, ""])


def build_record(
    row: Row, results: Results, reference: ReferenceTable | None = None, estimated_seconds: float | None = None
) -> dict[str, Any]:
    """All that is known of a row, by column of results.csv; None for what there is not."""
    config, measured = row.config, row.metrics
    progress = row.latest_checkpoint.progress if row.latest_checkpoint else None
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
        "reason": row.reason or None,
        "trial_id": config.id,
    }
    named |= {name: value for name, value in config.as_dict().items() if name not in named}
    named |= {
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
    lengths = sorted({length for one in results.rows for length in one.length_evals})
    named |= {f"val_loss_at_{length}": row.length_evals.get(length) for length in lengths}
    beside = reference.find_row(config) if reference else None
    return named | {f"reference_{name}": getattr(beside, name, None) for name in LOSS_FIELDS}


def build_records(results: Results, reference: ReferenceTable | None = None) -> list[dict[str, Any]]:
    """All that is known of each row, in the table's order."""
    known = estimate_training_seconds(results)
    return [build_record(row, results, reference, known.get(row.config.id)) for row in sort_rows(results)]


def format_csv(results: Results, reference: ReferenceTable | None = None) -> str:
    """The rows as CSV, one for each trial, numbers in full; empty for what there is not."""
    all_records = build_records(results, reference)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(all_records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(all_records)
    return out.getvalue()


def write_tables(results: Results) -> bool:
    """Writes results.md and results.csv into the results folder; says whether they say something else than before."""
    known, changed = load_reference(), False
    for name, text in (("results.md", format_markdown(results, known)), ("results.csv", format_csv(results, known))):
        if not results.storage.has_text(name, text):
            results.storage.write(name, text)
            changed = True
    return changed


def format_summary(results: Results) -> str:
    """How the rows stand, in a line."""
    numbers = {
        "done": results.count(DONE),
        "stopped": results.count(STOPPED),
        "diverged": results.count(DIVERGED),
        "failed": results.count(FAILED),
        "to be done": sum(not row.is_finished for row in results.rows),
    }
    standing = f"{pluralize(len(results.rows), 'row')}: " + ", ".join(f"{n} {what}" for what, n in numbers.items() if n)
    known = estimate_training_seconds(results)
    taken = sum(
        row.latest_checkpoint.progress.training_seconds
        for row in results.rows
        if row.latest_checkpoint and row.config.id in known
    )
    if not taken:
        return standing
    estimated = format_duration(sum(known.values()))
    return f"{standing}; training took {format_duration(taken)}, where ~{estimated} were estimated"


def list_outputs(results: Results) -> list[str]:
    """Where to look: the report, the best checkpoints."""
    there = results.storage.list_entries(recursive=False)
    report = [results.storage.uri_of("report.html"), "results.md", "results.csv"] if "report.html" in there else []
    best = [
        (dataset, row.best_checkpoint)
        for dataset, row in results.best_by_dataset.items()
        if row.best_checkpoint is not None
    ]
    return [
        *([f"results: {', '.join(report)}"] if report else []),
        *(f"best checkpoint on {dataset}: {results.storage.uri_of(saved.folder)}" for dataset, saved in best),
    ]


def estimate_training_seconds(results: Results) -> dict[str, float]:
    """Seconds that the steps done should have taken, by trial id, where it is known what they ran on."""
    slots = {
        launch.number: throughput.placement_from_record(launch.slot)
        for launch in results.launches
        if launch.slot is not None
    }
    found = {}
    for row in results.rows:
        slot = (
            slots.get(parse_launch_number(row.latest_checkpoint.folder.split("/")[0]))
            if row.latest_checkpoint
            else None
        )
        seconds = (
            plan.estimate_seconds(row.config, row.latest_checkpoint.progress, slot)
            if row.latest_checkpoint and slot
            else None
        )
        if seconds is not None:
            found[row.config.id] = seconds
    return found


def to_plain_text(value: Any) -> str:
    """Return recorded data (numbers, text, lists, mappings) as words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {to_plain_text(item)}" for name, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(to_plain_text, value)) or "–"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
