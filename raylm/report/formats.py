"""Tables as text: Markdown and LaTeX for people, CSV for programs. No torch, no Ray."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from raylm.errors import counted, duration
from raylm.planning import plan, throughput
from raylm.report.reference import LOSSES, Reference, load_reference
from raylm.report.table import build, ordered
from raylm.results.folder import launch_number
from raylm.results.rows import DIVERGED, DONE, FAILED, STOPPED, Results, Row
from raylm.results.sweep_record import launches


def markdown(results: Results, reference: Reference | None = None) -> str:
    """The table, and below it what there is to say of its rows."""
    made = build(results, reference)
    rows = markdown_rows([made.headings, ["---"] * len(made.headings), *made.lines])
    notes = [f"- {note}" for note in made.notes]
    return "\n".join([rows, *(["", *notes] if notes else []), ""])


def markdown_rows(rows: Iterable[Sequence[str]]) -> str:
    """Cells as rows of a table."""
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)


LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "±": r"$\pm$",
}


def latex(results: Results, reference: Reference | None = None) -> str:
    """The table for a paper: booktabs, a rule between datasets, notes as comments."""
    made = build(results, reference)

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(LATEX.get(character, character) for character in cell) for cell in cells) + r" \\"

    columns = "".join("l" if name in ("dataset", "model", "run") else "r" for name in made.headings)
    text = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", line(made.headings)]
    dataset = None
    for cells in made.lines:
        if cells[0] != dataset:
            text.append(r"\midrule")
        dataset = cells[0]
        text.append(line(cells))
    text += [r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in made.notes)]
    return "\n".join([*text, ""])


def record(
    row: Row, results: Results, reference: Reference | None = None, estimated_seconds: float | None = None
) -> dict[str, Any]:
    """All that is known of a row, by column of results.csv; None for what there is not."""
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
        "checkpoint": row.best.folder if row.best else None,
        "going_up": progress.going_up if progress else None,
    }
    lengths = sorted({length for one in results.rows for length in one.elsewhere})
    named |= {f"val_loss_at_{length}": row.elsewhere.get(length) for length in lengths}
    beside = reference.row(config) if reference else None
    return named | {f"reference_{name}": getattr(beside, name, None) for name in LOSSES}


def records(results: Results, reference: Reference | None = None) -> list[dict[str, Any]]:
    """All that is known of each row, in the table's order."""
    known = estimates(results)
    return [record(row, results, reference, known.get(row.config.id)) for row in ordered(results)]


def csv_text(results: Results, reference: Reference | None = None) -> str:
    """The rows as CSV, one for each trial, numbers in full; empty for what there is not."""
    all_records = records(results, reference)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(all_records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(all_records)
    return out.getvalue()


def write(results: Results) -> bool:
    """Writes results.md and results.csv into the results folder; says whether they say something else than before."""
    known, changed = load_reference(), False
    for name, text in (("results.md", markdown(results, known)), ("results.csv", csv_text(results, known))):
        if not results.storage.says(name, text):
            results.storage.write(name, text)
            changed = True
    return changed


def summary(results: Results) -> str:
    """How the rows stand, in a line."""
    numbers = {
        "done": results.count(DONE),
        "stopped": results.count(STOPPED),
        "diverged": results.count(DIVERGED),
        "failed": results.count(FAILED),
        "to be done": sum(not row.ended for row in results.rows),
    }
    standing = f"{counted(len(results.rows), 'row')}: " + ", ".join(f"{n} {what}" for what, n in numbers.items() if n)
    known = estimates(results)
    taken = sum(row.latest.progress.training_seconds for row in results.rows if row.latest and row.config.id in known)
    if not taken:
        return standing
    return f"{standing}; training took {duration(taken)}, where ~{duration(sum(known.values()))} were estimated"


def places(results: Results) -> list[str]:
    """Where to look: the report, the best checkpoints."""
    there = results.storage.entries(deep=False)
    report = [results.storage.where("report.html"), "results.md", "results.csv"] if "report.html" in there else []
    best = [(dataset, row.best) for dataset, row in results.best_by_dataset.items() if row.best is not None]
    return [
        *([f"results: {', '.join(report)}"] if report else []),
        *(f"best checkpoint on {dataset}: {results.storage.where(saved.folder)}" for dataset, saved in best),
    ]


def estimates(results: Results) -> dict[str, float]:
    """Seconds that the steps done should have taken, by trial id, where it is known what they ran on."""
    slots = {str(one.get("number")): throughput.recorded(one.get("slot")) for one in launches(results.storage)}
    found = {}
    for row in results.rows:
        slot = slots.get(str(launch_number(row.latest.folder.split("/")[0]))) if row.latest else None
        seconds = plan.estimated_seconds(row.config, row.latest.progress, slot) if row.latest and slot else None
        if seconds is not None:
            found[row.config.id] = seconds
    return found
