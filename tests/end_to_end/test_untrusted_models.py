"""Models and corpora from untrusted sources: their code is not run, and pickled weights are refused."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from malicious_pickle import MaliciousObject
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from raylm.config.catalog import NANO_MODEL
from raylm.config.dataset import DatasetSpec
from raylm.data import preparation, tokenizer
from raylm.errors import UserError
from raylm.training import models

AUTO_MAP = {
    "AutoConfig": "code.Config",
    "AutoModel": "code.Model",
    "AutoModelForCausalLM": "code.Model",
    "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"],
}
"""Classes in a model folder's own code."""
WEIGHTS_ERROR = r"safetensors|weights"
"""Pattern of the error about weights that are not loaded."""


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """File that a model's code would create; the test fails if it exists in the end."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


@pytest.fixture
def model(tmp_path: Path, marker: Path) -> Path:
    """Folder of a small GPT-2 with its tokenizer, and Python code that creates `marker`."""
    folder = tmp_path / "model"
    torch.manual_seed(0)
    trained, _ = tokenizer.train([["some words to train on, some more words to train on\n" * 20]])
    assert isinstance(trained, PreTrainedTokenizerFast)
    trained.save_pretrained(folder)
    config = GPT2Config(vocab_size=len(trained), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    (folder / "code.py").write_text(
        f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"
    )
    return folder


def update_json(path: Path, **values: Any) -> None:
    """Set values of the object in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def load_model(folder: Path, *, pretrained: bool = True) -> Any:
    """Load the tokenizer and the model of a folder as a trial does; return the model."""
    loaded_tokenizer = tokenizer.load(folder, "model")
    source = models.resolve_model(str(folder), pretrained=pretrained)
    return models.load_model(source, vocab_size=len(loaded_tokenizer), dropout=None, seed=0)


@pytest.mark.usefixtures("marker")
@pytest.mark.parametrize("pretrained", [True, False])
def test_known_model_is_loaded_without_its_own_code(model: Path, pretrained: bool) -> None:
    update_json(model / "config.json", auto_map=AUTO_MAP)
    update_json(model / "tokenizer_config.json", auto_map=AUTO_MAP)
    assert type(load_model(model, pretrained=pretrained)) is GPT2LMHeadModel


@pytest.mark.usefixtures("marker")
def test_tokenizer_that_requires_its_own_code_is_refused(model: Path) -> None:
    update_json(model / "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="Tokenizer")
    update_json(model / "config.json", auto_map=AUTO_MAP, model_type="foreign")
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        tokenizer.load(model, "model")


def pickle_weights(marker: Path, file_format: str) -> bytes:
    """Return weights that run code: a plain pickle, or an archive or a legacy file of torch.save."""
    if file_format == "pickle":
        return pickle.dumps(MaliciousObject(marker))
    content = io.BytesIO()
    weights = {"wte.weight": MaliciousObject(marker)}
    torch.save(weights, content, _use_new_zipfile_serialization=file_format == "archive")
    return content.getvalue()


@pytest.mark.parametrize("file_format", ["pickle", "archive", "legacy"])
@pytest.mark.parametrize("location", ["alone", "beside foreign safetensors", "named safetensors", "in the index"])
def test_pickled_weights_are_refused_without_unpickling(
    model: Path, marker: Path, file_format: str, location: str
) -> None:
    content = pickle_weights(marker, file_format)
    weights = model / "model.safetensors"
    (model / "pytorch_model.bin").write_bytes(content)
    if location == "beside foreign safetensors":
        weights.rename(model / "foreign.safetensors")
    elif location == "named safetensors":
        weights.write_bytes(content)
    else:
        weights.unlink()
    if location == "in the index":
        index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "pytorch_model.bin"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
        (model / "other.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=WEIGHTS_ERROR):
        load_model(model)


def test_pickled_tokens_in_the_cache_are_refused_without_unpickling(
    tmp_path: Path, marker: Path, small_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLM_CACHE", str(tmp_path / "cache"))
    corpus = preparation.prepare(DatasetSpec(str(small_text)), None, NANO_MODEL)
    (tokens,) = (tmp_path / "cache" / "corpora").glob("*/train.npy")
    np.save(tokens, np.array([MaliciousObject(marker)], dtype=object))
    with pytest.raises(ValueError, match=r"memory-mapped|allow_pickle"):
        preparation.load_cached(corpus.fingerprint)


@pytest.mark.usefixtures("marker")
@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "../elsewhere.safetensors", "elsewhere/../../elsewhere.safetensors"]
)
def test_weights_index_that_names_other_than_safetensors_in_its_folder_is_refused(model: Path, name: str) -> None:
    """Refuse undamaged weights because of the file name in their index."""
    weights = model / "model.safetensors"
    tensors = load_file(weights)
    torch.save(tensors, model / "pytorch_model.bin")
    (model / "elsewhere").mkdir()
    weights.rename(model.parent / "elsewhere.safetensors")
    (model / "decoy.safetensors").write_bytes((model.parent / "elsewhere.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=WEIGHTS_ERROR):
        load_model(model)
