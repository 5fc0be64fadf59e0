"""Evaluation on test splits: correct values, in the table and results.csv, refused for datasets without one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from reference_loss import FLOAT32_ROUNDING, mean_loss
from reference_run import train_without_ray
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from raylm import Results, Sweep, UserError, load_results
from raylm.cli.app import app
from raylm.data.corpus import Windows
from raylm.data.preparation import prepare
from raylm.report import formats
from raylm.results.folder import TEST_LOSSES_FILE
from raylm.results.rows import Row
from raylm.training.evaluate import evaluate_test_split


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Results folder with a finished row on a dataset with a test split."""
    text = tmp_path / "text"
    text.mkdir()
    for name, topic in (("train", "for"), ("validation", "while"), ("test", "break")):
        (text / f"{name}.txt").write_text(topics[topic])
    fields = {"dataset": str(text), "context_length": 32, "max_train_tokens": 300}
    return load_results(train_without_ray(Sweep(name="tested", space=fields, precision="float32"), tmp_path))


def reference_loss(results: Results, row: Row) -> float:
    """Return the test loss of a row's best checkpoint by transformers' own loss."""
    assert row.best_checkpoint is not None
    folder = results.storage.uri_of(row.best_checkpoint.folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    corpus = prepare(row.config.dataset_spec, None, "gpt2-nano")
    assert corpus.test is not None
    return mean_loss(model, Windows(corpus.test.tokens, row.config.context_length, corpus.start_token_id))


def test_test_loss_is_that_of_the_checkpoint_and_in_the_tables(results: Results) -> None:
    done = CliRunner().invoke(app, ["evaluate", results.storage.uri, "--split", "test"])
    assert done.exit_code == 0, done.output
    reloaded = load_results(results.storage.uri)
    (row,) = reloaded.rows
    assert row.test_loss == pytest.approx(reference_loss(results, row), rel=FLOAT32_ROUNDING)
    assert row.metrics is not None and row.test_loss != pytest.approx(row.metrics.val_loss, abs=1e-4)
    assert row.length_evals == {}
    assert f"test loss {row.test_loss:.3f} (float32)" in done.output
    (record,) = csv.DictReader(formats.format_csv(reloaded).splitlines())
    assert float(record["test_loss"]) == row.test_loss and record["test_loss_precision"] == "float32"
    (printed,) = json.loads(CliRunner().invoke(app, ["report", results.storage.uri, "--json"]).stdout)["rows"]
    assert (printed["test_loss"], printed["test_loss_precision"]) == (row.test_loss, "float32")
    head, _, line = formats.format_markdown(reloaded).splitlines()[:3]
    assert "| test loss | best epoch |" in head and f"| {row.test_loss:.2f} |" in line


def test_changed_test_split_is_evaluated_again(results: Results) -> None:
    (row,) = results.rows
    before = evaluate_test_split(results, row)
    Path(row.config.dataset, "test.txt").write_text(topics["lambda"])
    after = evaluate_test_split(results, row)
    assert after != before and after.loss == pytest.approx(reference_loss(results, row), rel=FLOAT32_ROUNDING)
    (stored,) = json.loads(Path(results.storage.uri, TEST_LOSSES_FILE).read_text()).values()
    assert stored == {"loss": after.loss, "precision": "float32"}


def test_losses_of_versions_before_have_no_precision(results: Results) -> None:
    (row,) = results.rows
    assert row.best_checkpoint is not None
    Path(results.storage.uri, TEST_LOSSES_FILE).write_text(json.dumps({row.best_checkpoint.weights_hash: 5.5}))
    reloaded = load_results(results.storage.uri)
    assert (reloaded.rows[0].test_loss, reloaded.rows[0].test_precision) == (5.5, None)
    (record,) = csv.DictReader(formats.format_csv(reloaded).splitlines())
    assert (record["test_loss"], record["test_loss_precision"]) == ("5.5", "")


def test_dataset_without_a_test_split_and_unfinished_rows_are_refused(trained_sweep: Results) -> None:
    finished, pending = trained_sweep.rows
    with pytest.raises(UserError, match="has no test split"):
        evaluate_test_split(trained_sweep, finished)
    with pytest.raises(UserError, match=r"is not finished \(pending\)"):
        evaluate_test_split(trained_sweep, pending)
    done = CliRunner().invoke(app, ["evaluate", trained_sweep.storage.uri, "--split", "test"])
    assert done.exit_code == 2 and "has no test split" in done.output
    assert "test loss" not in formats.format_markdown(load_results(trained_sweep.storage.uri))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "tests"], "expected validation or test"),
        (["--split", "test", "--context-lengths", "64"], "exclude each other"),
        ([], "--context-lengths: got ''"),
    ],
)
def test_options_that_do_not_fit_are_refused(trained_sweep: Results, options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["evaluate", trained_sweep.storage.uri, *options])
    assert done.exit_code == 2 and message in " ".join(done.output.split())
