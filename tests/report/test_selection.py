"""Selected rows and columns, and two-way tables, in every format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from sample_folder import write_sample_folder
from sample_rows import FOLDER, sample_row
from typer.testing import CliRunner

from raylm import UserError
from raylm.cli.app import app
from raylm.report.select.output import ReportOptions, build_sheet, format_report, index_records
from raylm.report.select.output import select as select_options
from raylm.report.select.pivot import Pivot, build_pivot, build_pivot_sheet
from raylm.report.select.rows import Condition, RowSelection, resolve_column
from raylm.results.rows import FAILED, Row, SweepRows
from raylm.results.storage import Folder

ROWS = [
    *(
        sample_row(
            3.0 - n / 8 + c / 1024 + seed / 10, model=model, context_length=c, seed=seed, dropout=d, seconds=9.0 + c
        )
        for n, model in enumerate(("gpt2", "gpt2-xl"))
        for c in (256, 512)
        for seed in (0, 1)
        for d in (None, 0.1)
    ),
    sample_row(None, status=FAILED, model="gpt2", context_length=1024, learning_rate=1e-3),
]


def sweep(rows: list[Row] = ROWS) -> SweepRows:
    return SweepRows(Folder(FOLDER), list(rows))


def select(*where: str, sort: str = "", top: int | None = None, rows: list[Row] = ROWS) -> list[Row]:
    selection = RowSelection(tuple(map(Condition.parse, where)), sort, top)
    return select_options(sweep(rows), ReportOptions(selection)).rows


def pivot(results: SweepRows, text: str) -> Pivot:
    return build_pivot(results, text, index_records(results, None))


@pytest.mark.parametrize(
    ("condition", "number"),
    [
        ("model=gpt2", 9),
        ("model=gpt2,gpt2-xl", 17),
        ("model!=gpt2", 8),
        ("dropout=none", 9),
        ("dropout=0.10", 8),
        ("context len=256", 8),
        ("learning-rate=1e-3", 1),
        ("val_loss<3.2", 2),
        ("context_length>=512", 9),
        ("status=failed", 1),
        ("best=yes", 1),
    ],
)
def test_condition_selects_rows(condition: str, number: int) -> None:
    assert len(select(condition)) == number


def test_conditions_are_combined() -> None:
    assert len(select("model=gpt2", "context_length=256", "seed=1")) == 2


def test_lines_are_sorted_by_the_mean_of_their_seeds_and_missing_values_are_last() -> None:
    ordered = select(sort="-val_loss")
    assert [(row.config.model, row.config.context_length) for row in ordered[::4]] == [
        ("gpt2", 512), ("gpt2-xl", 512), ("gpt2", 256), ("gpt2-xl", 256), ("gpt2", 1024)
    ]  # fmt: skip
    assert [row.config.seed for row in ordered[:2]] == [0, 1]
    assert select(sort="model", top=2)[0].config.model == "gpt2"


def test_top_takes_the_best_lines_of_each_dataset() -> None:
    others = [sample_row(9.0 - n, dataset="imdb", learning_rate=10.0**-n) for n in (1, 2, 3)]
    top = select(top=1, rows=[*ROWS, *others])
    assert [(row.config.dataset, row.config.model, row.config.seed) for row in top] == [
        ("pydocs", "gpt2-xl", 0), ("pydocs", "gpt2-xl", 1), ("imdb", "gpt2-nano", 0)
    ]  # fmt: skip
    assert top[2] is others[2]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("modle=gpt2", ["no column 'modle'", "did you mean 'model'?", "there are dataset, context_length, model"]),
        ("model", ["got 'model'", "expected COLUMN=VALUE, as in model=gpt2"]),
        ("model=gpt3", ["no row has model=gpt3", "it has gpt2, gpt2-xl"]),
        ("model<3", ["model has texts", "expected = or !="]),
        ("val_loss<low", ["val_loss has numbers", "got 'low'"]),
        ("context_length=long", ["context_length has numbers", "got 'long'"]),
    ],
)
def test_condition_that_cannot_hold_is_refused(condition: str, words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        select(condition)
    assert all(word in str(refused.value) for word in ("--where", *words))


# ---- columns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Context len", "context_length"),
        ("zero-shot", "zero_shot_loss"),
        ("adj val loss", "adj_val_loss"),
        ("lr", "learning_rate"),
        ("block_size", "context_length"),
        ("micro_batch_size", "micro_batch_size"),  # a column, and the batch of another tool
    ],
)
def test_columns_have_the_names_of_headings_and_of_other_tools(name: str, key: str) -> None:
    names = ["context_length", "learning_rate", "adj_val_loss", "batch_size", "micro_batch_size", "zero_shot_loss"]
    assert resolve_column(name, names, "--columns") == key


def test_columns_are_those_of_the_table_or_of_results_csv() -> None:
    results = select_options(sweep(), ReportOptions(RowSelection(top=1)))
    options = ReportOptions(columns=("model", "val loss", "training_seconds", "optimizer", "n"))
    assert format_report(results, "markdown", options).splitlines()[:3] == [
        "| model | val loss | training seconds | optimizer | n |",
        "| --- | --- | --- | --- | --- |",
        "| gpt2-xl | 3.17 ± 0.64 | 265 | adafactor | 2 |",
    ]
    (line, _) = csv.DictReader(io.StringIO(format_report(results, "csv", ReportOptions(columns=("seed", "val_loss")))))
    assert line == {"seed": "0", "val_loss": "3.125"}
    assert json.loads(format_report(results, "json", ReportOptions(columns=("run",))))["rows"][0].keys() == {"run"}
    with pytest.raises(UserError, match=r"--columns: no column 'los'.*there are dataset"):
        format_report(results, "markdown", ReportOptions(columns=("los",)))


def test_best_cell_is_marked_where_run_names_are_left_out() -> None:
    sheet = build_sheet(sweep(), ReportOptions(columns=("model", "context_length", "adj_val_loss")))
    ((row, column),) = sheet.bold
    assert sheet.rows[row][:2] == ["gpt2-xl", "256"] and column == 2
    assert build_sheet(sweep(), ReportOptions()).bold == frozenset()


# ---- two-way tables -----------------------------------------------------------------------------------------------


def test_pivot_has_a_cell_for_each_pair_of_values_with_seeds_and_the_best_line() -> None:
    sheet = build_pivot_sheet(pivot(sweep(), "model,context len,val_loss"))
    assert sheet.column_names == ("model", "256", "512") and sheet.span == (1, "context length")
    assert sheet.rows == [["gpt2", "3.30 ± 0.64", "3.55 ± 0.64"], ["gpt2-xl", "3.17 ± 0.64", "3.42 ± 0.64"]]
    assert sheet.bold == {(1, 1)}
    assert sheet.notes[1] == "each cell is the best of up to 2 configurations that differ in other fields"
    latex = format_report(sweep(), "latex", ReportOptions(pivot="model,context_length"))
    assert r" & \multicolumn{2}{c}{context length} \\" in latex and r"\cmidrule(lr){2-3}" in latex
    assert r"gpt2-xl & \textbf{3.17 $\pm$ 0.64} & 3.42 $\pm$ 0.64 \\" in latex


def test_pivot_has_a_block_for_each_dataset_and_empty_cells() -> None:
    rows = [*ROWS[:2], sample_row(2.0, model="gpt2", dataset="imdb"), sample_row(1.0, model="gpt2-xl", dataset="imdb")]
    sheet = build_pivot_sheet(pivot(sweep(rows), "model,context_length,training_seconds"))
    assert sheet.rows == [
        ["pydocs", "gpt2", "265", "–"],
        ["imdb", "gpt2", "–", "10.0"],
        ["imdb", "gpt2-xl", "–", "10.0"],
    ]
    assert not sheet.bold and sheet.breaks == {1}


def test_pivot_as_csv_and_json_is_in_full_precision() -> None:
    options = ReportOptions(pivot="model,context_length,val_loss")
    records = list(csv.DictReader(io.StringIO(format_report(sweep(), "csv", options))))
    assert [float(record["val_loss"]) for record in records] == pytest.approx([3.3, 3.55, 3.175, 3.425])
    assert {record["n"] for record in records} == {"2"}
    assert len(json.loads(format_report(sweep(), "json", options))["rows"]) == 4


@pytest.mark.parametrize("text", ["model", "model,", "a,b,c,d"])
def test_pivot_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"--pivot: got .* expected ROW,COLUMN"):
        pivot(sweep(), text)


# ---- the command --------------------------------------------------------------------------------------------------


def test_command_selects_in_every_format(tmp_path: Path) -> None:
    folder = str(write_sample_folder(tmp_path / "sample").storage.uri)

    def report(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["report", folder, *arguments], env={"COLUMNS": "60"})
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "imdb" not in report("--where", "dataset=wikitext2") and "1 row: 1 done" in report(
        "--top", "1", "--where", "status=done"
    )
    assert "2.52" in report("--columns", "model,val_loss", "--sort", "-val_loss")
    page = report("--format", "html", "--where", "dataset=wikitext2").strip()
    assert page.endswith("report-selection.html") and "gpt2-xl" in Path(page).read_text()
    assert not (tmp_path / "sample" / "report.html").exists()
    assert "context length 512" in " ".join(report("--pivot", "model,context_length").split())
    for arguments in (["--pivot", "model,seed", "--columns", "model"], ["--sort", "los"], ["--top", "0"]):
        assert CliRunner().invoke(app, ["report", folder, *arguments]).exit_code == 2
