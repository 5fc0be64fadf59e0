"""A model in a local folder reaches machines that do not have it, once each."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raylm import TrialConfig
from raylm.config.dataset import DatasetSpec
from raylm.data import cache, preparation
from raylm.training import models
from raylm.training.train import finetune
from raylm.tuning import prepare


@pytest.fixture(scope="module")
def folder(small_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that somebody has trained."""
    config = TrialConfig(dataset=str(small_text), context_length=32, max_train_tokens=300)
    corpus = preparation.prepare(DatasetSpec(str(small_text)), None, "gpt2-nano")
    (last,) = finetune(config, corpus, models.resolve_model("gpt2-nano", pretrained=True))
    made = tmp_path_factory.mktemp("own") / "model"
    made.mkdir()
    last.save(made)
    return made


@pytest.mark.parametrize("weights", [True, False])
def test_what_is_unpacked_is_what_was_packed(
    folder: Path, weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path))
    source = models.resolve_model(str(folder), pretrained=weights)
    packed = prepare.ship_model(source)
    assert packed is not None and ("model.safetensors" in packed) == weights
    with ThreadPoolExecutor(4) as several:  # trials that begin together on one node
        there = list(several.map(lambda _: prepare.receive_model(source, packed), range(4)))
    assert set(there) == {there[0]}
    files = there[0].fetch_files()
    assert files is not None and files.parent == cache.root_dir() / "models"
    assert models.resolve_model(str(files), pretrained=weights).revision == source.revision
    assert sorted(path.name for path in files.parent.iterdir()) == sorted([files.name, f"{files.name}.lock"])


def test_what_a_machine_fetches_itself_is_not_packed() -> None:
    assert prepare.ship_model(models.resolve_model("gpt2-nano", pretrained=True)) is None
    assert prepare.ship_model(models.ModelSource("gpt2", "/anywhere", True, "openai-community/gpt2", "abc")) is None


def test_other_weights_in_a_folder_are_another_revision(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    before = models.resolve_model(str(tmp_path / "model"), pretrained=True)
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    after = models.resolve_model(str(tmp_path / "model"), pretrained=True)
    assert before.revision != after.revision
    random = [models.resolve_model(str(one), pretrained=False).revision for one in (folder, tmp_path / "model")]
    assert random[0] == random[1], "weights that are not loaded change nothing"
