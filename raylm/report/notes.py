"""Notes on the numbers of a table: the loss that ranks rows, rows that do not compare, the precision. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from raylm.numerics import HALF_PRECISIONS
from raylm.results.data_record import describe_lossy_tokenizer, describe_mixed_search, describe_words
from raylm.results.measures import ADJ_VAL_LOSS
from raylm.results.rows import DIVERGED, DONE, Row, SweepRows

MAX_NAMED_RUNS = 3
"""Maximum number of run names in one note."""
MIN_SKIPPED_STEPS, MIN_SKIPPED_FRACTION = 4, 0.01
"""Skipped steps in float16 from which a row has a note, and their share of its steps: a few find the loss's scale."""
LOSSY_MARK = "lossy tokenizer"
"""Remark at the run name of a row whose tokenizer loses text."""


def collect_notes(results: SweepRows, compared: Iterable[Row] = ()) -> list[str]:
    """Return the notes on the numbers of a sweep.

    Args:
        results: rows of any status.
        compared: rows beside a row of the reference.
    """
    notes = [*describe_measures(results), *_describe_search(results), *_describe_corpora(results)]
    return [*notes, *_describe_precision(results, list(compared)), *_describe_overflows(results)]


def describe_measures(results: SweepRows) -> list[str]:
    """Return by which loss the best row of each dataset is found; nothing if no dataset has two rows to rank.

    Results of versions before are ranked by adj val loss, and have no note.
    """
    texts: dict[str, list[str]] = {}
    for dataset, measure in results.measures.items():
        if measure.name == ADJ_VAL_LOSS:
            continue
        rows = [row for row in results.rows if row.config.dataset == dataset and row.status == DONE]
        if sum(results.ranked_loss(row) is not None for row in rows) > 1:
            text = f"{measure.name}, {measure.reason}" if measure.reason else measure.name
            texts.setdefault(text, []).append(dataset)
    if len(texts) == 1 and len(results.measures) == 1:
        return [f"best by {text}" for text in texts]
    return [f"best on {', '.join(datasets)} by {text}" for text, datasets in texts.items()]


def lossy_rows(results: SweepRows) -> list[Row]:
    """Return the rows whose tokenizer is known to lose text."""
    return [row for row in results.rows if _find_lossy_note(results, row)]


def _find_lossy_note(results: SweepRows, row: Row) -> str:
    record = results.data.get(row.config.corpus_key)
    return describe_lossy_tokenizer(record) if record else ""


def _describe_search(results: SweepRows) -> list[str]:
    """Return a note on a search that compares rows of different datasets."""
    if results.record is None or results.record.search is None:
        return []
    note = describe_mixed_search(results.measures, results.record.objective or ADJ_VAL_LOSS)
    return [f"{note}; the best row is given for each dataset"] if note else []


def _describe_corpora(results: SweepRows) -> list[str]:
    """Return notes on tokenizers that lose text, and on texts without spaces."""
    rows = [row for row in results.rows if row.metrics is not None]
    lossy: dict[str, list[Row]] = {}
    for row in rows:
        if note := _find_lossy_note(results, row):
            lossy.setdefault(note, []).append(row)
    notes = []
    for note, affected in lossy.items():
        is_ranked = all(results.ranked_loss(row) is not None for row in affected)
        notes.append(f"{_join_names(affected)}: {note}{'' if is_ranked else '; not ranked'}")
    records = (results.data.get(row.config.corpus_key) for row in rows)
    by_dataset = {record.dataset: note for record in records if record and (note := describe_words(record))}
    return [*notes, *by_dataset.values()]


def _describe_precision(results: SweepRows, compared: Sequence[Row]) -> list[str]:
    """Return notes on losses in 16 bits, and on the precision of those of `raylm evaluate` beside them."""
    rows = [row for row in results.rows if row.metrics is not None]
    rounded = {
        name: group
        for name in HALF_PRECISIONS
        if (group := [row for row in rows if results.find_precision(row) == name])
    }
    evaluated = _list_evaluations(rows)
    if not rounded and not any({*HALF_PRECISIONS} & {*column.values()} for column in evaluated.values()):
        return []
    notes = []
    for name, group in rounded.items():
        is_all = len(group) == len(rows)
        if is_all and all(set(column.values()) == {name} for column in evaluated.values()):
            notes, evaluated = [f"all losses were evaluated in {name}"], {}
        else:
            subject = "all train and val losses" if is_all else f"losses of {_join_names(group)}"
            notes.append(f"{subject} were evaluated in {name}")
    columns: dict[str, list[str]] = {}
    for name, column in evaluated.items():
        columns.setdefault(_describe_column(column, rows), []).append(name)
    notes += [f"{', '.join(names)}: evaluated in {text}" for text, names in columns.items() if text]
    if names := [name for name, group in rounded.items() if any(row in group for row in compared)]:
        notes.append(f"diff: includes the rounding of {' and '.join(names)}, as docs/numbers.md describes it")
    return notes


def _describe_overflows(results: SweepRows) -> list[str]:
    """Return notes on rows that diverged in float16, and on each of which it skipped more than a few steps."""
    notes = []
    if diverged := [row for row in results.rows if row.status == DIVERGED and _is_float16(results, row)]:
        limit = "which overflows above 65,504; precision='float32' does not"
        notes.append(f"{_join_names(diverged)} diverged in float16, {limit}")
    for row in results.rows:
        progress = row.latest_checkpoint.progress if row.latest_checkpoint else None
        if progress and progress.skipped_steps >= max(MIN_SKIPPED_STEPS, MIN_SKIPPED_FRACTION * progress.step):
            count = f"{progress.skipped_steps:,} of {progress.step:,} steps were skipped"
            hint = "precision='float32' skips none"
            notes.append(f"{row.config.run_name}: {count}, as their gradients overflowed float16; {hint}")
    return notes


def _is_float16(results: SweepRows, row: Row) -> bool:
    """Return whether a row was trained in float16, by its checkpoint or else by the latest launch."""
    if row.latest_checkpoint is not None:
        return row.latest_checkpoint.progress.loss_scale is not None
    return bool(results.launches) and results.launches[-1].precision == "float16"


def _list_evaluations(rows: Sequence[Row]) -> dict[str, dict[str, str | None]]:
    """Return the precisions of the values of `raylm evaluate` and before fine-tuning, by column and trial."""
    lengths = sorted({length for row in rows for length in row.length_evals})
    columns: dict[str, dict[str, str | None]] = {
        f"val at {length}": {
            row.config.id: row.length_precisions.get(length) for row in rows if length in row.length_evals
        }
        for length in lengths
    }
    columns["test loss"] = {row.config.id: row.test_precision for row in rows if row.test_loss is not None}
    columns["zero-shot"] = {row.config.id: row.zero_shot_precision for row in rows if row.zero_shot_loss is not None}
    return {name: column for name, column in columns.items() if column}


def _describe_column(precisions: Mapping[str, str | None], rows: Sequence[Row]) -> str:
    """Return the precisions of a column with the runs of each; empty if none is known."""
    known = sorted({precision for precision in precisions.values() if precision})
    if len(known) == 1 and None not in precisions.values():
        return known[0]
    by_precision = {name: [row for row in rows if precisions.get(row.config.id) == name] for name in known}
    return ", ".join(f"{name} ({_join_names(group)})" for name, group in by_precision.items())


def _join_names(rows: Sequence[Row]) -> str:
    names = [row.config.run_name for row in rows[:MAX_NAMED_RUNS]]
    return ", ".join(names) + (f" and {len(rows) - len(names)} more" if len(rows) > len(names) else "")
