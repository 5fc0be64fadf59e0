"""Preparation of inputs: shared by trials, and checked before Ray starts."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from tiny_tokenizers import byte_level, save_llama

from raylm import TrialConfig
from raylm.config.dataset import DatasetSpec
from raylm.data import tables
from raylm.errors import UserError
from raylm.results.rows import DIVERGED, FAILED, Row, SweepRows
from raylm.results.storage import Folder
from raylm.results.sweep_record import LaunchRecord, ModelRecord, SweepRecord
from raylm.training import models
from raylm.tuning.prepare import PreparedInputs, prepare_inputs


def prepare(trials: list[TrialConfig], results: SweepRows, notes: list[str] | None = None) -> PreparedInputs:
    """Prepare the inputs of trials; notes are appended to a list."""
    notes = [] if notes is None else notes
    return prepare_inputs(trials, results, notes.append, lambda text: contextlib.nullcontext())


def test_dataset_too_small_for_one_window_is_rejected(small_text: Path, tmp_path: Path) -> None:
    trial = TrialConfig(dataset=str(small_text), max_train_tokens=100, context_length=128)
    with pytest.raises(UserError, match=r"has 100 training tokens; context_length 128 needs at least 127"):
        prepare([trial], SweepRows(Folder(tmp_path), []))
    fits = TrialConfig(dataset=str(small_text), max_train_tokens=127, context_length=128)
    assert list(prepare([fits], SweepRows(Folder(tmp_path), [])).corpora) == [fits.corpus_key]


def test_corpora_and_models_are_prepared_once_for_all_trials(small_text: Path, tmp_path: Path) -> None:
    trials = [TrialConfig(dataset=str(small_text), context_length=32, batch_size=size) for size in (1, 2, 4)]
    prepared = prepare(trials, SweepRows(Folder(tmp_path), []))
    assert list(prepared.corpora) == [trials[0].corpus_key]
    assert list(prepared.sources) == [("gpt2-nano", True)]


def test_validation_on_the_training_text_gives_a_warning(small_text: Path, tmp_path: Path) -> None:
    for name in ("train.txt", "validation.txt"):
        (tmp_path / name).write_text((small_text / "train.txt").read_text())
    for dataset, has_warning in ((tmp_path, True), (small_text, False)):
        notes: list[str] = []
        trial = TrialConfig(dataset=str(dataset), context_length=32)
        prepare([trial], SweepRows(Folder(tmp_path / "runs"), []), notes)
        assert any("is validated on its training text" in note for note in notes) == has_warning


def test_changed_weights_are_rejected_unless_all_rows_failed(small_text: Path, tmp_path: Path) -> None:
    trial = TrialConfig(dataset=str(small_text), context_length=32)
    launch = LaunchRecord(3, models=[ModelRecord("gpt2-nano", pretrained=True, revision="another")])
    record = SweepRecord("s", [trial], launches=[launch])
    for status, is_rejected in ((DIVERGED, True), (FAILED, False)):
        rows = SweepRows(Folder(tmp_path), [Row(trial, status, "", None, None)], record)
        with pytest.raises(UserError, match="the files of gpt2-nano") if is_rejected else contextlib.nullcontext():
            prepare([trial], rows)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            {"body": ["a"], "title": ["b"]},
            ["several columns of strings", "text_column", "body (string), title (string)"],
        ),
        ({"text": [1, 2]}, ["no column `text` of strings", "text (int64)"]),
        ({"text": ["a", None]}, ["row 1 of the train split has no text"]),
    ],
)
def test_rows_without_text_are_rejected(columns: dict[str, list[object]], expected: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        train, validation, _ = tables.build_splits(
            "dataset x/y", {"train": datasets.Dataset.from_dict(columns)}, DatasetSpec("x/y")
        )
        list(train.pieces) + list(validation.pieces)
    assert all(word in str(caught.value) for word in ["dataset x/y", *expected])


def test_context_above_a_local_models_limit_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_positions": 64}))
    with pytest.raises(UserError, match="at most 64 tokens"):
        TrialConfig(model=str(tmp_path), context_length=65)


def test_weights_of_a_model_are_loaded_once_for_all_dropouts(
    tmp_path: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_llama(tmp_path / "model", byte_level())
    loaded: list[float | None] = []

    def load_model(source: models.ModelSource, *, dropout: float | None, **options: Any) -> Any:
        loaded.append(dropout)
        return load(source, dropout=dropout, **options)

    load = models.load_model
    monkeypatch.setattr(models, "load_model", load_model)
    fields: dict[str, Any] = {"dataset": str(small_text), "model": str(tmp_path / "model"), "context_length": 32}
    trials = [TrialConfig(**fields, dropout=dropout, seed=seed) for dropout in (0.0, 0.1) for seed in (0, 1)]
    prepare(trials, SweepRows(Folder(tmp_path), []))
    assert loaded == [0.0]
