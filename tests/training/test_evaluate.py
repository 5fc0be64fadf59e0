"""Best checkpoints at other context lengths: the right numbers, once, tied to the weights that they are of."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from raylm import TrialConfig, UserError, load_results
from raylm.data.corpus import Windows
from raylm.data.preparation import prepare
from raylm.report import formats
from raylm.results.folder import LENGTH_EVALS_FILE, load_rows
from raylm.results.rows import Results
from raylm.results.sweep_record import DataRecord, LaunchRecord, SweepRecord
from raylm.training.evaluate import evaluate_lengths


def own_loss(trained: Results, context_length: int) -> float:
    """The val loss of the finished trial by transformers' own loss, a window at a time."""
    best = trained.rows[0].best_checkpoint
    assert best is not None
    model = AutoModelForCausalLM.from_pretrained(trained.storage.uri_of(best.folder), dtype=torch.float32).eval()
    corpus = prepare(trained.rows[0].config.dataset, None, "gpt2-nano")
    windows, total = Windows(corpus.validation.tokens, context_length, corpus.eos_token_id), 0.0
    with torch.no_grad():
        for number in range(len(windows)):
            inputs = torch.from_numpy(windows.get_batch([number])[0])
            total += model(input_ids=inputs, labels=inputs).loss.item() * windows.count_tokens([number])
    return total / len(windows.tokens)


def test_values_are_those_of_the_checkpoint_and_are_made_once(trained_sweep: Results) -> None:
    made = list(evaluate_lengths(trained_sweep, [16, 32, 64, 4096]))  # 32 is its own, 4096 more than it takes
    assert [one.context_length for one in made] == [16, 64]
    for one in made:
        assert one.config == trained_sweep.rows[0].config
        assert one.val_loss == pytest.approx(own_loss(trained_sweep, one.context_length), abs=1e-5)
    again = load_results(trained_sweep.storage.uri)
    assert again.rows[0].length_evals == {one.context_length: one.val_loss for one in made}
    assert list(evaluate_lengths(again, [16, 64])) == []


def test_the_table_gets_a_column_for_each_length(trained_sweep: Results) -> None:
    values = {one.context_length: one.val_loss for one in evaluate_lengths(trained_sweep, [16, 64])}
    again = load_results(trained_sweep.storage.uri)
    head, _, line = formats.format_markdown(again).splitlines()[:3]
    assert "| adj val loss | val at 16 | val at 64 | best epoch | n | run |" in head
    assert f"| {values[16]:.2f} | {values[64]:.2f} | 1 | 1 |" in line
    first, second = csv.DictReader(formats.format_csv(again).splitlines())
    assert (float(first["val_loss_at_16"]), second["val_loss_at_16"]) == (values[16], "")


def test_values_of_other_weights_do_not_count(trained_sweep: Results) -> None:
    list(evaluate_lengths(trained_sweep, [16]))
    file = Path(trained_sweep.storage.uri) / LENGTH_EVALS_FILE
    (losses,) = json.loads(file.read_text()).values()
    file.write_text(json.dumps({"other weights": losses}))
    assert load_results(trained_sweep.storage.uri).rows[0].length_evals == {}
    file.write_text("{damaged")
    assert load_results(trained_sweep.storage.uri).rows[0].length_evals == {}


def test_damaged_weights_are_not_evaluated(trained_sweep: Results) -> None:
    best = trained_sweep.rows[0].best_checkpoint
    assert best is not None
    weights = Path(trained_sweep.storage.uri_of(best.folder), "model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match="is damaged"):
        list(evaluate_lengths(trained_sweep, [16]))


def test_a_corpus_that_is_gone_is_prepared_again_and_compared(
    trained_sweep: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        list(evaluate_lengths(Results(trained_sweep.storage, [moved], record), [64]))
    with pytest.raises(UserError, match=r"sweep\.json has no launch"):
        list(evaluate_lengths(Results(trained_sweep.storage, [moved]), [64]))


def test_a_row_that_is_not_finished_is_left_out(trained_sweep: Results) -> None:
    assert [one.config.seed for one in evaluate_lengths(trained_sweep, [16])] == [0]
    assert load_rows(trained_sweep.storage, [trained_sweep.rows[1].config]).rows[0].length_evals == {}
