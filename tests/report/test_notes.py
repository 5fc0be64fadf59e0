"""Notes beside a table: the loss that ranks rows, tokenizers that lose text, text without spaces, the precision."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sample_rows import sample_row

from raylm.config.trial import TrialConfig
from raylm.report.advice import build_advice
from raylm.report.figures.build import build_figures
from raylm.report.formats import format_csv, format_markdown
from raylm.report.html import write_html
from raylm.report.importance import compute_importances
from raylm.report.json_output import format_report_json
from raylm.report.latex import format_latex
from raylm.report.reference import load_reference
from raylm.report.tables.table import build_table
from raylm.results.data_record import DataRecord, describe_data
from raylm.results.progress import LossScale
from raylm.results.rows import DIVERGED, Row, SweepRows
from raylm.results.storage import Folder
from raylm.results.sweep_record import LaunchRecord, SweepRecord


def data(model: str = "gpt2-nano", dataset: str = "pydocs", tokens: int = 1000, **fields: Any) -> DataRecord:
    """Return the record of a corpus whose validation split has 4,000 bytes and 700 words."""
    known = {"validation_tokens": tokens, "validation_bytes": 4000, "validation_words": 700, "lossless": True, **fields}
    return DataRecord(dataset, model, fingerprint=f"{dataset} {model}", **known)


def sweep(*rows: Row, records: list[DataRecord], search: str | None = None, precision: str = "float32") -> SweepRows:
    launches = [LaunchRecord(1, data=records, precision=precision)]
    record = SweepRecord("s", [row.config for row in rows], search, launches=launches)
    return SweepRows(Folder(Path("/nowhere")), list(rows), record)


NANO, GPT2 = sample_row(3.0), sample_row(4.0, model="gpt2")
LOSSY = sample_row(0.5, model="owner/lossy")
TWO_TOKENIZERS = [data(), data("gpt2", tokens=600)]
"""Per byte, `gpt2` with its fewer tokens is the better one: 0.6 against 0.75 nats."""
LOSSY_DATA = data("owner/lossy", lossless=False, unknown_share=0.234)


def notes(results: SweepRows) -> list[str]:
    return build_table(results).notes


# ---- the measure --------------------------------------------------------------------------------------------------


def test_rows_of_one_tokenizer_are_ranked_by_val_loss() -> None:
    rows = [sample_row(3.0, seed=1), sample_row(2.5, learning_rate=1e-3)]
    results = sweep(*rows, records=[data()])
    assert results.best() is results.rows[1]
    assert notes(results) == ["best by val loss"] and "nats per byte" not in format_markdown(results)


def test_rows_of_models_with_one_tokenizer_are_ranked_by_val_loss() -> None:
    shared = [replace(data(model), fingerprint="same") for model in ("gpt2", "gpt2-medium")]
    results = sweep(sample_row(3.0, model="gpt2"), sample_row(2.9, model="gpt2-medium"), records=shared)
    assert notes(results) == ["best by val loss"] and results.best() is results.rows[1]


def test_rows_of_different_tokenizers_are_ranked_by_bytes() -> None:
    results = sweep(NANO, GPT2, records=TWO_TOKENIZERS)
    assert results.best() is GPT2
    assert notes(results) == ["best by nats per byte, as tokenizers differ"]
    table = build_table(results)
    column = table.column_names.index("nats per byte")
    assert [row[column] for row in table.rows] == ["0.750", "0.600"]
    content = json.loads(format_report_json(results))
    assert content["best"] == {"pydocs": GPT2.config.run_name} and content["best_by"] == {"pydocs": "nats per byte"}
    assert content["notes"] == notes(results) and [row["nats_per_byte"] for row in content["rows"]] == [0.75, 0.6]
    (panel,) = build_figures(results).parallel_coordinates
    assert panel.axes[-1].name == "nats per byte" and [line[-1] for line in panel.coordinates] == [1.0, 0.0]


def test_importance_leaves_rows_out_that_do_not_compare() -> None:
    fields = [{"learning_rate": 1e-4 * 2**n, "batch_size": 2 ** (n * 3 % 5)} for n in range(10)]
    rows = [
        sample_row(3.0 + n / 10, model=model, **fields[n]) for n in range(10) for model in ("gpt2-nano", "owner/lossy")
    ]
    ((_, chart),) = compute_importances(sweep(*rows, records=[data(), LOSSY_DATA]))
    assert set(chart.labels) == {"learning rate", "batch size"}
    ((_, chart),) = compute_importances(sweep(*rows, records=[data(), replace(LOSSY_DATA, lossless=True)]))
    assert set(chart.labels) == {"model", "learning rate", "batch size"}


def test_advice_goes_by_bytes() -> None:
    close = sweep(sample_row(3.0), sample_row(5.01, model="gpt2"), records=TWO_TOKENIZERS)
    assert "differ by 0.0015 in nats per byte" in build_advice(close)[0]


def test_results_without_recorded_bytes_are_ranked_by_words() -> None:
    old = [replace(record, validation_bytes=None) for record in TWO_TOKENIZERS]
    results = sweep(NANO, GPT2, records=old)
    assert results.best() is NANO and notes(results) == []
    assert json.loads(format_report_json(results))["best_by"] == {"pydocs": "adj val loss"}


def test_datasets_are_ranked_apart_and_a_search_over_them_says_so() -> None:
    rows = [
        sample_row(loss, dataset=name, seed=seed) for name, loss in (("imdb", 3.0), ("pydocs", 2.0)) for seed in (0, 1)
    ]
    records = [data(), data(dataset="imdb")]
    assert notes(sweep(*rows, records=records)) == ["best on imdb, pydocs by val loss"]
    ranked, searched = notes(sweep(*rows, records=records, search="optuna"))
    assert ranked == "best on imdb, pydocs by val loss"
    assert searched.startswith("the search compares rows of imdb, pydocs with each other, by adj val loss")


def test_texts_of_one_name_that_differ_are_pointed_out() -> None:
    rows = [sample_row(3.0), sample_row(2.0, text_column="body")]
    other = replace(data(validation_bytes=900), fingerprint="b", text_column="body")
    results = sweep(*rows, records=[data(), other])
    assert notes(results) == ["best by nats per byte, as validation texts differ, so that rows compare only roughly"]


# ---- tokenizers that lose text ------------------------------------------------------------------------------------


def test_row_of_a_lossy_tokenizer_is_not_ranked_and_says_why() -> None:
    results = sweep(NANO, sample_row(3.5, seed=1), LOSSY, records=[data(), LOSSY_DATA])
    assert results.best() is NANO and results.ranked_loss(LOSSY) is None
    name = LOSSY.config.run_name
    reason = "23 % of its tokens are unknown; decoded, its tokens are another text"
    assert f"{name} (lossy tokenizer) |" in format_markdown(results)
    assert any(note.startswith(f"{name}: {reason}") and note.endswith("; not ranked") for note in notes(results))
    assert not any(name in text for text in build_advice(results))
    lossless = [row["lossless"] for row in csv.DictReader(format_csv(results).splitlines())]
    assert lossless == ["True", "True", "False"]
    assert reason in format_latex(results)


def test_rows_of_one_lossy_tokenizer_compare_with_each_other() -> None:
    results = sweep(LOSSY, sample_row(0.4, model="owner/lossy", seed=1), records=[LOSSY_DATA])
    assert results.best() is results.rows[1]
    ranked, note = notes(results)
    assert ranked == "best by val loss" and note.endswith("do not compare with those of other tokenizers")


def test_lossy_rows_alone_have_no_best_row_if_their_tokenizers_differ() -> None:
    other = replace(LOSSY_DATA, model="owner/lossier", fingerprint="other")
    results = sweep(LOSSY, sample_row(0.4, model="owner/lossier"), records=[LOSSY_DATA, other])
    assert results.best_by_dataset == {} and build_advice(results) == []


# ---- text without spaces ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "size", "found"),
    [
        (700, 4_000, None),
        (3_000, 39_000, None),  # Russian
        (12, 99_600, "12 words of 8,300 bytes each"),
        (1, 3_000, "1 word of 3,000 bytes each"),
        (0, 3_000, "no word"),
        (100, 7_600, "100 words of 76 bytes each"),
    ],
)
def test_words_of_text_without_spaces_are_described(words: int, size: int, found: str | None) -> None:
    texts = describe_data([data(validation_words=words, validation_bytes=size)])
    assert len(texts) == (found is not None)
    assert found is None or (f"its validation split has {found};" in texts[0] and "adj val loss on pydocs" in texts[0])


def test_short_lines_of_a_script_without_spaces_are_no_words() -> None:
    lines = data(validation_words=200, validation_bytes=3_800, spaceless_percent=98)
    assert "200 words of 19 bytes each" in describe_data([lines])[0]
    assert describe_data([replace(lines, spaceless_percent=2)]) == []


def test_note_on_words_is_in_every_form_of_the_report(tmp_path: Path) -> None:
    record = data(validation_words=12, validation_bytes=99_600)
    results = replace(sweep(NANO, records=[record]), storage=Folder(tmp_path))
    (note,) = describe_data([record])
    write_html(results)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in (format_markdown(results), format_latex(results), format_report_json(results), page):
        assert note in text


def test_words_of_old_results_are_described_by_their_tokens() -> None:
    old = data(validation_words=10, validation_bytes=None)
    assert "10 words of 100 tokens each" in describe_data([old])[0]
    assert describe_data([data(validation_bytes=None)]) == describe_data([DataRecord("pydocs", "gpt2")]) == []


# ---- precision ----------------------------------------------------------------------------------------------------


def with_precision(row: Row, precision: str) -> Row:
    """Return a row whose evaluations have recorded a precision."""
    assert row.latest_checkpoint is not None
    progress = row.latest_checkpoint.progress
    evaluations = [replace(metrics, precision=precision) for metrics in progress.evaluations]
    latest = replace(row.latest_checkpoint, progress=replace(progress, evaluations=evaluations))
    return replace(row, latest_checkpoint=latest)


def test_precision_of_a_row_is_that_of_its_evaluation_else_of_its_launch() -> None:
    resumed = with_precision(sample_row(3.0, seed=1), "float32")
    rows = [
        NANO,
        resumed,
        sample_row(None, seed=2),
        with_precision(sample_row(3.0, status=DIVERGED, seed=3), "bfloat16"),
    ]
    results = sweep(*rows, records=[data()], precision="bfloat16")
    precisions = [row["precision"] for row in csv.DictReader(format_csv(results).splitlines())]
    assert precisions == ["bfloat16", "float32", "", "bfloat16"]
    names = f"{NANO.config.run_name}, {rows[3].config.run_name}"
    assert f"losses of {names} were evaluated in bfloat16" in notes(results)
    unknown = sweep(NANO, records=[data()], precision="auto")
    assert unknown.find_precision(NANO) is None
    assert unknown.find_precision(with_precision(NANO, "float32")) == "float32"


def test_comparison_with_the_reference_says_that_losses_are_rounded() -> None:
    row = with_precision(Row(TrialConfig(dataset="imdb", model="gpt2", context_length=256), *_parts(NANO)), "bfloat16")
    compared = build_table(sweep(row, records=[data("gpt2", "imdb")]), load_reference())
    assert "diff" in compared.column_names
    assert compared.notes[-2:] == [
        "all losses were evaluated in bfloat16",
        "diff: includes the rounding of bfloat16, as docs/numbers.md describes it",
    ]
    exact = with_precision(row, "float32")
    assert not any("bfloat16" in note for note in build_table(sweep(exact, records=[]), load_reference()).notes)


def test_precision_of_other_context_lengths_and_of_the_test_split_is_said_beside_the_rows() -> None:
    rounded, exact = (with_precision(sample_row(seed=seed), kind) for seed, kind in ((1, "bfloat16"), (2, "float32")))
    rounded = replace(rounded, length_evals={64: 3.1}, length_precisions={64: "float32"})
    assert notes(sweep(rounded, records=[data()])) == [
        "all train and val losses were evaluated in bfloat16",
        "val at 64: evaluated in float32",
    ]
    exact = replace(exact, length_evals={64: 3.2}, length_precisions={64: "bfloat16"}, test_loss=3.3)
    rounded_name, exact_name = rounded.config.run_name, exact.config.run_name
    assert notes(sweep(rounded, exact, records=[data()]))[1:] == [
        f"losses of {rounded_name} were evaluated in bfloat16",
        f"val at 64: evaluated in bfloat16 ({exact_name}), float32 ({rounded_name})",
    ]
    tested = replace(exact, length_evals={}, test_precision="bfloat16")
    assert notes(sweep(tested, records=[data()])) == ["test loss: evaluated in bfloat16"]
    started = replace(with_precision(sample_row(), "bfloat16"), zero_shot_loss=8.3, zero_shot_precision="bfloat16")
    assert notes(sweep(started, records=[data()])) == ["all losses were evaluated in bfloat16"]
    mixed = [with_precision(sample_row(seed=seed), kind) for seed, kind in ((1, "bfloat16"), (2, "float16"))]
    assert notes(sweep(*mixed, records=[data()]))[1:] == [
        f"losses of {row.config.run_name} were evaluated in {kind}"
        for row, kind in zip(mixed, ("bfloat16", "float16"), strict=True)
    ]
    resumed = with_precision(started, "float32")
    assert notes(sweep(resumed, records=[data()])) == ["zero-shot: evaluated in bfloat16"]


@pytest.mark.parametrize(("skipped", "steps", "has_note"), [(3, 10, False), (4, 10, True), (9, 1000, False)])
def test_row_of_which_float16_skipped_more_than_a_few_steps_has_a_note(
    skipped: int, steps: int, has_note: bool
) -> None:
    row = with_precision(NANO, "float16")
    assert row.latest_checkpoint is not None
    progress = replace(row.latest_checkpoint.progress, step=steps, loss_scale=LossScale(skipped_steps=skipped))
    row = replace(row, latest_checkpoint=replace(row.latest_checkpoint, progress=progress))
    expected = ["all losses were evaluated in float16"]
    if has_note:
        count = f"{skipped} of {steps} steps were skipped, as their gradients overflowed float16"
        expected.append(f"{row.config.run_name}: {count}; precision='float32' skips none")
    assert notes(sweep(row, records=[data()])) == expected


def test_row_that_diverged_in_float16_has_a_note() -> None:
    row = sample_row(None)
    lost = replace(row, status=DIVERGED)
    expected = f"{row.config.run_name} diverged in float16, which overflows above 65,504; precision='float32' does not"
    assert notes(sweep(lost, records=[data()], precision="float16")) == [expected]
    assert notes(sweep(lost, records=[data()], precision="bfloat16")) == []


def _parts(row: Row) -> tuple[Any, ...]:
    return row.status, row.reason, row.latest_checkpoint, row.best_checkpoint
