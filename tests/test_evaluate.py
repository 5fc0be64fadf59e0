"""Best checkpoints at other context lengths: the right numbers, once, tied to the weights that they are of."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from raylm import Sweep, TrialConfig, UserError, data, load_results, models, record, report
from raylm.data import Windows
from raylm.evaluate import evaluate
from raylm.record import Record
from raylm.results import ELSEWHERE_FILE, Results, find_rows
from raylm.storage import Folder
from raylm.train import finetune


@pytest.fixture
def found(small_text: Path, tmp_path: Path) -> Results:
    """A results folder with a finished trial and one that was never begun, made without Ray."""
    torch.set_num_threads(1)
    fields = {"dataset": str(small_text), "context_length": 32, "learning_rate": 1e-3, "max_train_tokens": 1000}
    sweep = Sweep(name="s", space=fields, seeds=(0, 1))
    config = sweep.trials()[0]
    corpus = data.prepare(str(small_text), None, "gpt2-nano")
    (last,) = finetune(config, corpus, models.locate("gpt2-nano", pretrained=True))
    checkpoint = tmp_path / "launch-001" / config.run_name / "checkpoint_000000"
    checkpoint.mkdir(parents=True)
    last.save(checkpoint)
    used = {"dataset": str(small_text), "model": "gpt2-nano", "fingerprint": corpus.fingerprint}
    launch = {"number": 1, "precision": "float32", "data": [used], "models": []}
    record.write(Folder(tmp_path), Record("s", sweep.trials(), launches=[launch]))
    return load_results(tmp_path)


def own_loss(found: Results, context_length: int) -> float:
    """The val loss of the finished trial by transformers' own loss, a window at a time."""
    best = found.rows[0].best
    assert best is not None
    model = AutoModelForCausalLM.from_pretrained(found.storage.where(best.folder), dtype=torch.float32).eval()
    corpus = data.prepare(found.rows[0].config.dataset, None, "gpt2-nano")
    windows, total = Windows(corpus.validation.tokens, context_length, corpus.end_of_text), 0.0
    with torch.no_grad():
        for number in range(len(windows)):
            inputs = torch.from_numpy(windows.batch([number])[0])
            total += model(input_ids=inputs, labels=inputs).loss.item() * windows.token_count([number])
    return total / len(windows.tokens)


def test_values_are_those_of_the_checkpoint_and_are_made_once(found: Results) -> None:
    made = list(evaluate(found, [16, 32, 64, 4096]))  # 32 is its own, 4096 more than it takes
    assert [one.context_length for one in made] == [16, 64]
    for one in made:
        assert one.config == found.rows[0].config
        assert one.val_loss == pytest.approx(own_loss(found, one.context_length), abs=1e-5)
    again = load_results(found.storage.place)
    assert again.rows[0].elsewhere == {one.context_length: one.val_loss for one in made}
    assert list(evaluate(again, [16, 64])) == []


def test_the_table_gets_a_column_for_each_length(found: Results) -> None:
    values = {one.context_length: one.val_loss for one in evaluate(found, [16, 64])}
    again = load_results(found.storage.place)
    head, _, line = report.markdown(again).splitlines()[:3]
    assert "| adj val loss | val at 16 | val at 64 | best epoch | n | run |" in head
    assert f"| {values[16]:.2f} | {values[64]:.2f} | 1 | 1 |" in line
    first, second = csv.DictReader(report.csv_text(again).splitlines())
    assert (float(first["val_loss_at_16"]), second["val_loss_at_16"]) == (values[16], "")


def test_values_of_other_weights_do_not_count(found: Results) -> None:
    list(evaluate(found, [16]))
    file = Path(found.storage.place) / ELSEWHERE_FILE
    (losses,) = json.loads(file.read_text()).values()
    file.write_text(json.dumps({"other weights": losses}))
    assert load_results(found.storage.place).rows[0].elsewhere == {}
    file.write_text("{damaged")
    assert load_results(found.storage.place).rows[0].elsewhere == {}


def test_damaged_weights_are_not_evaluated(found: Results) -> None:
    best = found.rows[0].best
    assert best is not None
    weights = Path(found.storage.where(best.folder), "model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match="is damaged"):
        list(evaluate(found, [16]))


def test_a_corpus_that_is_gone_is_prepared_again_and_compared(
    found: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path / "empty"))
    assert len(list(evaluate(found, [16]))) == 1
    changed = tmp_path / "changed"
    changed.mkdir()
    for name in ("train.txt", "validation.txt"):
        (changed / name).write_text((Path(found.rows[0].config.dataset) / name).read_text() + "more\n")
    old = json.loads((Path(found.storage.place) / record.NAME).read_text())["launches"][0]["data"][0]["fingerprint"]
    moved = replace(found.rows[0], config=TrialConfig(dataset=str(changed)))
    launch = {"number": 1, "precision": "auto", "models": []}
    used = {"dataset": str(changed), "model": "gpt2-nano", "fingerprint": old[::-1]}
    record.write(found.storage, Record("s", [moved.config], launches=[{**launch, "data": [used]}]))
    with pytest.raises(UserError, match="has changed since the sweep"):
        list(evaluate(Results(found.storage, [moved]), [64]))


def test_a_row_that_is_not_finished_is_left_out(found: Results) -> None:
    assert [one.config.seed for one in evaluate(found, [16])] == [0]
    assert find_rows(found.storage, [found.rows[1].config]).rows[0].elsewhere == {}
