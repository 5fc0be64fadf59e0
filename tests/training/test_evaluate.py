"""Evaluation at other context lengths: correct values, computed once, bound to the weights of a checkpoint."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference_loss import FLOAT32_ROUNDING, mean_loss
from reference_run import train_without_ray
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from raylm import Sweep, TrialConfig, UserError, load_results
from raylm.cli.app import app
from raylm.data.corpus import Windows
from raylm.data.preparation import prepare
from raylm.report import formats
from raylm.results.folder import LENGTH_EVALS_FILE, load_rows
from raylm.results.rows import SweepRows
from raylm.results.sweep_record import DataRecord, LaunchRecord, SweepRecord
from raylm.training.evaluate import evaluate_lengths


def reference_loss(results: SweepRows, context_length: int) -> float:
    """Return the val loss of the finished trial's best checkpoint by transformers' own loss."""
    best = results.rows[0].best_checkpoint
    assert best is not None
    model = AutoModelForCausalLM.from_pretrained(results.storage.uri_of(best.folder), dtype=torch.float32).eval()
    corpus = prepare(results.rows[0].config.dataset_spec, None, "gpt2-nano")
    return mean_loss(model, Windows(corpus.validation.tokens, context_length, corpus.start_token_id))


def test_values_are_those_of_the_checkpoint_and_computed_once(trained_sweep: SweepRows) -> None:
    evals = list(evaluate_lengths(trained_sweep, [16, 32, 64, 4096]))  # trained at 32; 4096 exceeds the model's maximum
    assert [length_eval.context_length for length_eval in evals] == [16, 64]
    for length_eval in evals:
        assert length_eval.config == trained_sweep.rows[0].config
        expected = reference_loss(trained_sweep, length_eval.context_length)
        assert length_eval.val_loss == pytest.approx(expected, rel=FLOAT32_ROUNDING)
    reloaded = load_results(trained_sweep.storage.uri)
    assert reloaded.rows[0].length_evals == {length_eval.context_length: length_eval.val_loss for length_eval in evals}
    assert {length_eval.precision for length_eval in evals} == {"float32"}  # that of the launch
    assert reloaded.rows[0].length_precisions == {16: "float32", 64: "float32"}
    assert list(evaluate_lengths(reloaded, [16, 64])) == []


def test_table_has_a_column_for_each_length(trained_sweep: SweepRows) -> None:
    evals = evaluate_lengths(trained_sweep, [16, 64])
    values = {length_eval.context_length: length_eval.val_loss for length_eval in evals}
    reloaded = load_results(trained_sweep.storage.uri)
    head, _, line = formats.format_markdown(reloaded).splitlines()[:3]
    assert "| adj val loss | zero-shot | val at 16 | val at 64 | best epoch | n | run |" in head
    assert f"| {values[16]:.2f} | {values[64]:.2f} | 1 | 1 |" in line
    first, second = csv.DictReader(formats.format_csv(reloaded).splitlines())
    assert (float(first["val_loss_at_16"]), second["val_loss_at_16"]) == (values[16], "")
    assert (first["val_loss_at_16_precision"], second["val_loss_at_16_precision"]) == ("float32", "")
    assert list(reloaded.to_pandas()["val_loss_at_64_precision"].dropna()) == ["float32"]


def test_values_of_other_weights_are_ignored(trained_sweep: SweepRows) -> None:
    list(evaluate_lengths(trained_sweep, [16]))
    file = Path(trained_sweep.storage.uri) / LENGTH_EVALS_FILE
    (losses,) = json.loads(file.read_text()).values()
    file.write_text(json.dumps({"other weights": losses}))
    assert load_results(trained_sweep.storage.uri).rows[0].length_evals == {}
    file.write_text("{damaged")
    assert load_results(trained_sweep.storage.uri).rows[0].length_evals == {}


def test_damaged_weights_are_not_evaluated(trained_sweep: SweepRows) -> None:
    best = trained_sweep.rows[0].best_checkpoint
    assert best is not None
    weights = Path(trained_sweep.storage.uri_of(best.folder), "model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match="is damaged"):
        list(evaluate_lengths(trained_sweep, [16]))


def test_corpus_missing_from_the_cache_is_prepared_and_compared(
    trained_sweep: SweepRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path / "empty"))
    assert len(list(evaluate_lengths(trained_sweep, [16]))) == 1
    changed = tmp_path / "changed"
    changed.mkdir()
    for name in ("train.txt", "validation.txt"):
        (changed / name).write_text((Path(trained_sweep.rows[0].config.dataset) / name).read_text() + "more\n")
    fingerprint = trained_sweep.launches[0].data[0].fingerprint
    assert fingerprint is not None
    moved = replace(trained_sweep.rows[0], config=TrialConfig(dataset=str(changed)))
    launch = LaunchRecord(1, data=[DataRecord(str(changed), "gpt2-nano", fingerprint=fingerprint[::-1])])
    record = SweepRecord("s", [moved.config], launches=[launch])
    with pytest.raises(UserError, match="has changed since the sweep"):
        list(evaluate_lengths(SweepRows(trained_sweep.storage, [moved], record), [64]))
    with pytest.raises(UserError, match=r"sweep\.json has no launch"):
        list(evaluate_lengths(SweepRows(trained_sweep.storage, [moved]), [64]))


def test_unfinished_trials_are_skipped(trained_sweep: SweepRows) -> None:
    assert [length_eval.config.seed for length_eval in evaluate_lengths(trained_sweep, [16])] == [0]
    assert load_rows(trained_sweep.storage, [trained_sweep.rows[1].config]).rows[0].length_evals == {}


@pytest.fixture
def two_done_rows(small_text: Path, tmp_path: Path) -> SweepRows:
    """Results folder with two finished trials."""
    fields = {"dataset": str(small_text), "context_length": 32, "max_train_tokens": 300}
    return load_results(train_without_ray(Sweep(name="two", space=fields, seeds=(0, 1)), tmp_path))


def test_row_that_fails_is_reported_and_the_others_are_evaluated(
    two_done_rows: SweepRows,
) -> None:
    broken, whole = two_done_rows.rows
    assert broken.best_checkpoint is not None
    weights = Path(two_done_rows.storage.uri_of(broken.best_checkpoint.folder), "model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    uri = two_done_rows.storage.uri
    for arguments in (["evaluate", uri, "--context-lengths", "16"], ["generate", uri, "--prompt", "a"]):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 1, done.output
        assert f"{broken.config.run_name}: " in done.output and "is damaged" in done.output
        assert "1 of 2 rows failed" in done.output
    assert load_results(uri).get_row(whole.config.run_name).length_evals.keys() == {16}
