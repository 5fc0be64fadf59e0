"""Models that are refused before a sweep starts: by what they compute, and by what they cannot take."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_tokenizers import byte_level, save_llama

from raylm import TrialConfig
from raylm.errors import UserError
from raylm.results.rows import SweepRows
from raylm.results.storage import Folder
from raylm.training import model_check, models
from raylm.training.model_check import check_causality, check_model
from raylm.tuning.prepare import prepare_inputs

SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ENCODERS = ["Bert", "Roberta", "Electra", "XLMRoberta", "Camembert", "Data2VecText", "Ernie", "BigBird", "RoCBert"]
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mixtral": {"num_local_experts": 4},
    "Gemma3Text": {"head_dim": 16, "num_hidden_layers": 7},  # six layers with a sliding window, then a global one
    "GPTNeo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "Mpt": {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 128},
    "Mamba": {},
    "Bloom": {"n_layer": 2, "n_head": 2},
}


def build_model(family: str, **options: Any) -> transformers.PreTrainedModel:
    """Return a tiny model of a family with random weights."""
    transformers.logging.set_verbosity_error()
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **options})
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family", ENCODERS)
def test_model_whose_positions_see_later_ones_is_refused(family: str) -> None:
    model = build_model(family)
    with pytest.raises(UserError, match=r"model x: its positions see later ones.*with is_decoder false"):
        check_causality(model, "x")
    (relative, *_) = model_check._build_relatives(model.config)
    with pytest.raises(UserError, match="see later ones"):
        check_causality(relative, "x")


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_encoder_that_is_made_a_decoder_is_accepted(family: str) -> None:
    check_causality(build_model(family, is_decoder=True), "x")


@pytest.mark.parametrize("family", DECODERS)
def test_causal_model_and_its_small_relative_are_accepted(family: str) -> None:
    model = build_model(family, **DECODERS[family])
    check_causality(model, family)
    (relative, *_) = model_check._build_relatives(model.config)
    check_causality(relative, family)
    assert relative.num_parameters() < model.num_parameters()


def test_relative_has_one_layer_of_each_kind() -> None:
    model = build_model("Gemma3Text", head_dim=16, num_hidden_layers=12)
    (relative, *_) = model_check._build_relatives(model.config)
    assert relative.config.layer_types == model.config.layer_types[:6]
    assert len(set(relative.config.layer_types)) == 2


def test_large_model_is_checked_by_its_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_check, "MAX_CHECKED_PARAMETERS", 1_000)
    build_model("Roberta").save_pretrained(tmp_path)
    source = models.resolve_model(str(tmp_path), pretrained=False)
    with pytest.raises(UserError, match="its positions see later ones"):
        check_model(source, vocab_size=300, dropout=None)


@pytest.mark.parametrize(
    ("fields", "vocab_size", "message"),
    [
        ({}, 401, "its tokenizer has 401 tokens, the model only 400"),
        ({"dropout": 0.1}, 400, None),  # Llama has attention_dropout
    ],
)
def test_model_is_checked_with_the_trials_fields(
    tmp_path: Path, fields: dict[str, Any], vocab_size: int, message: str | None
) -> None:
    save_llama(tmp_path, None)
    source = models.resolve_model(str(tmp_path), pretrained=True)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        check_model(source, vocab_size=vocab_size, dropout=fields.get("dropout"))


def test_weights_that_do_not_match_are_told_before_ray_starts(tmp_path: Path, small_text: Path) -> None:
    save_llama(tmp_path, byte_level())
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    )
    trial = TrialConfig(dataset=str(small_text), model=str(tmp_path), context_length=32)
    with pytest.raises(UserError, match=r"its weights do not match its config.json: model.layers.2.*is missing"):
        prepare_inputs([trial], SweepRows(Folder(tmp_path), []), print, lambda text: contextlib.nullcontext())


def test_nested_text_config_has_a_context_limit(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 64}}')
    with pytest.raises(UserError, match="at most 64 tokens"):
        TrialConfig(model=str(tmp_path), context_length=65)
