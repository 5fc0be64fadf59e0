"""JSON of reports: the values of results.csv with their types, null for numbers that JSON lacks."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
from sample_folder import DIVERGED, DONE, write_sample_folder

from raylm.report import formats, json_output
from raylm.report.reference import load_reference
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import SweepRows


@pytest.fixture
def results(tmp_path: Path) -> SweepRows:
    return write_sample_folder(tmp_path / "sample")


def test_json_report_has_the_values_of_results_csv_with_types(results: SweepRows) -> None:
    report = json.loads(json_output.format_report_json(results, load_reference()))
    rows = list(csv.DictReader(formats.format_csv(results, load_reference()).splitlines()))
    texts = [{name: "" if value is None else str(value) for name, value in row.items()} for row in report["rows"]]
    assert texts == rows
    assert report["counts"] == {"done": 1, "stopped": 0, "diverged": 1, "failed": 1, "interrupted": 1, "pending": 1}
    assert report["best"] == {"wikitext2": DONE.run_name} and report["results"] == results.storage.uri


def test_nonfinite_loss_is_null_in_json(results: SweepRows) -> None:
    metrics = EvalMetrics(1, 10, 5000, math.nan, math.inf, 1.5)
    (row,) = [row for row in results.rows if row.config == DIVERGED]
    assert row.latest_checkpoint is not None
    latest = dataclasses.replace(row.latest_checkpoint, progress=Progress(30, 4, 10, 5000, evaluations=[metrics]))
    changed = SweepRows(results.storage, [dataclasses.replace(row, latest_checkpoint=latest)])
    (record,) = json.loads(json_output.format_report_json(changed))["rows"]
    assert (record["train_loss"], record["val_loss"], record["adj_val_loss"]) == (None, None, 1.5)
