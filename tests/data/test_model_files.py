"""Models of the catalog are known by their config.json, so that a launch does not load them to check them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raylm.config.catalog import MODELS
from raylm.data.model_files import ModelSource, is_known_gpt2

SHAPE = MODELS["gpt2"].shape
CONFIG = {
    "model_type": "gpt2",
    "n_layer": SHAPE.num_layers,
    "n_embd": SHAPE.hidden_size,
    "n_head": SHAPE.num_heads,
    "n_positions": SHAPE.max_positions,
    "vocab_size": SHAPE.vocab_size,
}


@pytest.mark.parametrize(
    ("name", "changes", "vocab_size", "is_known"),
    [
        ("gpt2", {}, SHAPE.vocab_size, True),
        ("gpt2", {}, SHAPE.vocab_size + 1, False),  # refused by the check
        ("gpt2", {"n_layer": 2}, SHAPE.vocab_size, False),
        ("gpt2", {"model_type": "llama"}, SHAPE.vocab_size, False),
        ("owner/gpt2", {}, SHAPE.vocab_size, False),
    ],
)
def test_model_is_known_if_all_its_sizes_are_those_of_the_catalog(
    tmp_path: Path, name: str, changes: dict[str, Any], vocab_size: int, is_known: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | changes))
    assert is_known_gpt2(ModelSource(name, str(tmp_path), pretrained=True), vocab_size) is is_known


def test_model_without_files_is_known() -> None:
    assert is_known_gpt2(ModelSource("gpt2-nano", None, pretrained=False), 300)
