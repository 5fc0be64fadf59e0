"""Models: loss equal to transformers', complete weights or an error, shapes of the known sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from reference_loss import FLOAT32_ROUNDING
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from raylm.config.catalog import MODELS, NANO_MODEL, ModelShape, find_shape
from raylm.config.dataset import DatasetSpec
from raylm.data.corpus import IGNORE_INDEX, Windows
from raylm.data.preparation import prepare
from raylm.errors import UserError
from raylm.training import models
from raylm.training.loss import summed_loss
from raylm.training.models import ModelSource


@pytest.fixture
def gpt2_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def load_model(folder: Path, vocab_size: int = 300, dropout: float | None = None) -> GPT2LMHeadModel:
    source = ModelSource(str(folder), str(folder), pretrained=True)
    return models.load_model(source, vocab_size=vocab_size, dropout=dropout, seed=0)


def test_loss_equals_transformers(small_text: Path) -> None:
    corpus = prepare(DatasetSpec(str(small_text)), None, NANO_MODEL)
    model = models.load_model(
        models.resolve_model(NANO_MODEL, pretrained=True), vocab_size=corpus.vocab_size, dropout=None, seed=0
    ).eval()
    windows = Windows(corpus.train.tokens, 33, corpus.start_token_id)
    inputs_BT, targets_BT = (torch.from_numpy(array) for array in windows.get_batch([0, 3]))
    ours = summed_loss(model, inputs_BT, targets_BT) / (2 * 32)
    theirs = model(input_ids=inputs_BT, labels=inputs_BT).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=FLOAT32_ROUNDING)


def test_loss_of_other_families_equals_transformers() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)).eval()
    inputs_BT = torch.randint(0, 90, (2, 17))
    targets_BT = torch.nn.functional.pad(inputs_BT[:, 1:], (0, 1), value=IGNORE_INDEX)
    ours = summed_loss(model, inputs_BT, targets_BT) / 32
    assert ours.item() == pytest.approx(model(input_ids=inputs_BT, labels=inputs_BT).loss.item(), rel=FLOAT32_ROUNDING)


def test_random_weights_depend_on_the_seed_only() -> None:
    source = models.resolve_model(NANO_MODEL, pretrained=False)
    loaded = [models.load_model(source, vocab_size=4096, dropout=None, seed=seed) for seed in (1, 1, 2)]
    first, same_seed, other_seed = (model.transformer.h[0].attn.c_attn.weight for model in loaded)
    assert torch.equal(first, same_seed)
    assert not torch.equal(first, other_seed)
    assert 0.9e6 < sum(p.numel() for p in loaded[0].parameters()) < 1.2e6


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts_of_the_catalog_match_the_networks(name: str) -> None:
    shape = MODELS[name].shape
    sizes = {"n_embd": shape.hidden_size, "n_layer": shape.num_layers, "n_head": shape.num_heads}
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=shape.vocab_size, n_positions=shape.max_positions, **sizes))
    assert sum(p.numel() for p in model.parameters()) == shape.num_parameters
    millions = {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558}
    assert name not in millions or round(shape.num_parameters / 1e6) == millions[name]


def test_shape_is_read_from_config_json(gpt2_folder: Path) -> None:
    source = ModelSource(str(gpt2_folder), str(gpt2_folder), pretrained=True)
    assert models.load_shape(source) == find_shape(str(gpt2_folder)) == ModelShape(2, 32, 2, 300, 64)
    assert models.load_shape(models.resolve_model(NANO_MODEL, pretrained=True)) == MODELS[NANO_MODEL].shape
    (gpt2_folder / "config.json").write_text("{damaged")
    assert models.load_shape(source) is None


def test_dropout_is_set_in_all_layers_or_kept(gpt2_folder: Path) -> None:
    assert load_model(gpt2_folder).config.attn_pdrop == 0.1
    config = load_model(gpt2_folder, dropout=0.25).config
    assert (config.attn_pdrop, config.resid_pdrop, config.embd_pdrop) == (0.25, 0.25, 0.25)


def test_weights_are_loaded_unchanged(gpt2_folder: Path) -> None:
    stored = load_file(gpt2_folder / "model.safetensors")
    loaded = load_model(gpt2_folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())


def test_weights_with_the_hubs_names_are_loaded(gpt2_folder: Path) -> None:
    """In the Hub's gpt2, names have no `transformer.` prefix, causal masks are tensors, and the tied head is absent."""
    tensors = {
        name.removeprefix("transformer."): value for name, value in load_file(gpt2_folder / "model.safetensors").items()
    }
    tensors.pop("lm_head.weight", None)
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril() for layer in range(2)}
    save_file({**tensors, **masks}, gpt2_folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(gpt2_folder)
    assert torch.equal(loaded.transformer.h[1].mlp.c_fc.weight, tensors["h.1.mlp.c_fc.weight"])
    assert loaded.lm_head.weight.data_ptr() == loaded.transformer.wte.weight.data_ptr()


def test_model_other_than_a_causal_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 300}))
    with pytest.raises(UserError, match="not a causal language model"):
        models.load_model(models.resolve_model(str(tmp_path), pretrained=False), vocab_size=300, dropout=None, seed=0)


def damage_missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def damage_more_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 3}))


def damage_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.wpe.weight"] = torch.zeros(32, 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def damage_truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def damage_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def damage_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "no-such-family"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, "transformer.h.1.mlp.c_fc.weight"),
        (damage_more_layers, "transformer.h.2"),
        (damage_shape, "wpe"),
        (damage_truncated, "cannot be loaded"),
        (damage_empty, "cannot be loaded"),
        (damage_config, "no-such-family"),
    ],
)
def test_damaged_weights_are_refused(gpt2_folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(gpt2_folder)
    with pytest.raises(UserError, match=message) as caught:
        load_model(gpt2_folder)
    assert "\n" not in str(caught.value)


def test_tokenizer_larger_than_the_model_is_refused(gpt2_folder: Path) -> None:
    with pytest.raises(UserError, match=r"301 tokens.*only 300"):
        load_model(gpt2_folder, vocab_size=301)


def test_pickled_weights_are_refused(gpt2_folder: Path) -> None:
    torch.save({}, gpt2_folder / "pytorch_model.bin")
    (gpt2_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"safetensors.*pretrained=False"):
        models.resolve_model(str(gpt2_folder), pretrained=True)
    assert models.resolve_model(str(gpt2_folder), pretrained=False).pretrained is False


def test_code_in_a_repository_is_never_executed(tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(witness)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    auto_map = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "foreign", "auto_map": auto_map}))
    source = models.resolve_model(str(folder), pretrained=False)
    with pytest.raises(UserError, match=r"config\.json cannot be used"):
        models.load_model(source, vocab_size=10, dropout=None, seed=0)
    assert not witness.exists()
