"""Several sweeps side by side: lines by configuration, differences with intervals, notes on what does not compare."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path

import pytest
from sample_folder import write_sample_folder
from sample_rows import sample_row
from typer.testing import CliRunner

from raylm.cli.app import app
from raylm.report.select.compare import Comparison, build_comparison_sheet, compare_sweeps, find_difference
from raylm.report.select.output import format_comparison
from raylm.report.tables.groups import SeedGroup
from raylm.results.data_record import DataRecord
from raylm.results.rows import DIVERGED, Row, SweepRows
from raylm.results.storage import Folder
from raylm.results.sweep_record import HardwareRecord, LaunchRecord, SweepRecord


def sweep(name: str, *rows: Row, **launch: object) -> SweepRows:
    record = SweepRecord(name, [], launches=[LaunchRecord(1, **launch)])  # type: ignore[arg-type]
    return SweepRows(Folder(Path("runs") / name), list(rows), record)


def seeds(*losses: float, **fields: object) -> list[Row]:
    return [sample_row(loss, seed=seed, **fields) for seed, loss in enumerate(losses)]  # type: ignore[arg-type]


def test_lines_are_configurations_in_the_order_of_the_reference() -> None:
    before = sweep("before", sample_row(3.0, model="gpt2-xl"), sample_row(3.5, model="gpt2"))
    extra = sample_row(9.0, status=DIVERGED, model="gpt2", learning_rate=0.1)
    after = sweep("after", sample_row(3.25, model="gpt2"), sample_row(2.5, model="gpt2-xl"), extra)
    sheet = build_comparison_sheet(compare_sweeps([before, after]))
    assert sheet.column_names == (
        "dataset", "context len", "model", "batch size", "learning rate",
        "val loss before", "val loss after", "diff after",
    )  # fmt: skip
    assert [row[2:] for row in sheet.rows] == [
        ["gpt2", "8", "5e-05", "3.500", "3.250", "-0.250"],
        ["gpt2", "8", "0.1", "–", "diverged", "–"],
        ["gpt2-xl", "8", "5e-05", "3.000", "2.500", "-0.500"],
    ]
    assert sheet.notes == ["diff: val loss minus that of before", "2 of 3 configurations are in all sweeps"]


def test_equal_seeds_are_compared_in_pairs_and_others_by_welch() -> None:
    first, second = SeedGroup(seeds(3.0, 4.0, 5.0)), SeedGroup(seeds(2.9, 3.85, 4.9))
    paired = find_difference(first, second)
    assert paired is not None and paired.is_significant
    assert paired.mean == pytest.approx(-0.35 / 3)
    assert paired.half_interval == pytest.approx(4.303 * statistics.stdev([-0.1, -0.15, -0.1]) / 3**0.5)
    welch = find_difference(first, SeedGroup(seeds(2.9, 3.8)))
    assert welch is not None and welch.half_interval is not None and not welch.is_significant
    a, b = 1 / 3, statistics.variance([2.9, 3.8]) / 2  # degrees: (a + b)^2 / (a^2 / 2 + b^2 / 1) = 2.34
    assert welch.half_interval == pytest.approx(4.303 * (a + b) ** 0.5)
    single = find_difference(SeedGroup(seeds(3.0)), second)
    assert single is not None and (single.half_interval, single.is_significant) == (None, False)
    assert find_difference(None, second) is None


def test_differences_larger_than_their_interval_are_bold() -> None:
    sweeps = [sweep("a", *seeds(3.0, 3.1), *seeds(3.0, 3.5, epochs=2))]
    sweeps.append(sweep("b", *seeds(2.5, 2.601), *seeds(3.0, 3.4, epochs=2)))
    sheet = build_comparison_sheet(compare_sweeps(sweeps))
    assert sheet.column_names[-3:] == ("diff b", "n a", "n b")
    assert sheet.bold == {(0, sheet.column_names.index("diff b"))}
    latex = format_comparison(compare_sweeps(sweeps), "latex")
    assert r"\textbf{-0.499 $\pm$ 0.006}" in latex and "% bold: differs by more than the 95 % interval" in latex


def test_differences_of_data_precision_versions_and_devices_are_noted() -> None:
    def launch(fingerprint: str, precision: str, torch: str, device: str) -> dict[str, object]:
        data = DataRecord("pydocs", "gpt2-nano", fingerprint=fingerprint, validation_tokens=len(fingerprint))
        versions, hardware = {"torch": torch, "numpy": torch}, HardwareRecord(trials_on=device)
        return {"data": [data], "precision": precision, "versions": versions, "hardware": hardware}

    old, new = launch("aa", "float32", "2.12", "T4"), launch("bbb", "bfloat16", "2.13", "H100")
    notes = compare_sweeps([sweep("old", sample_row(), **old), sweep("new", sample_row(), **new)]).notes
    assert notes == [
        "data differ, so that losses do not compare: pydocs (old 2 validation tokens, new 3 validation tokens)",
        "evaluated in: old: float32; new: bfloat16, which rounds differently",
        "torch: old: 2.12; new: 2.13",
        "trained on: old: T4; new: H100",
    ]
    assert compare_sweeps([sweep("old", sample_row(), **old), sweep("new", sample_row(), **old)]).notes == []
    assert compare_sweeps([sweep("old", sample_row(), **old), sweep("new", sample_row())]).notes == []


def test_sweeps_of_one_name_are_told_apart_by_their_folders() -> None:
    def labels(*folders: str) -> list[str]:
        return compare_sweeps([SweepRows(Folder(Path(folder)), [sample_row()]) for folder in folders]).labels

    assert labels("/a/grid", "/b/grid") == ["a/grid", "b/grid"]
    assert labels("/a/grid", "/a/grid") == ["1: /a/grid", "2: /a/grid"]


def test_numbers_are_in_full_precision_as_csv_and_json() -> None:
    comparison: Comparison = compare_sweeps([sweep("a", *seeds(3.0, 3.125)), sweep("b", *seeds(3.25, 3.5))])
    (line,) = csv.DictReader(io.StringIO(format_comparison(comparison, "csv")))
    assert (line["val_loss a"], line["n a"], line["difference b"]) == ("3.0625", "2", "0.3125")
    content = json.loads(format_comparison(comparison, "json"))
    assert content["sweeps"] == ["a", "b"] and content["rows"][0]["half_interval b"] > 0


def test_command_compares_folders_and_refuses_options_of_one(tmp_path: Path) -> None:
    folders = [write_sample_folder(tmp_path / name).storage.uri for name in ("a", "b")]
    done = CliRunner().invoke(app, ["report", *folders, "--format", "markdown", "--where", "status=done"])
    assert done.exit_code == 0 and "| 2.515 | 2.515 | +0.000 |" in done.output, done.output
    for arguments in (["--top", "1"], ["--format", "html"], ["--pivot", "model,seed"], ["--reference", "x.csv"]):
        refused = CliRunner().invoke(app, ["report", *folders, *arguments])
        assert refused.exit_code == 2, refused.output
