"""Models and datasets that have a short name in raylm: shapes, sizes and Hub ids. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a GPT-2-like network, from which its size and cost are computed."""

    num_layers: int
    hidden_size: int
    """Width of the residual stream, D."""
    num_heads: int
    vocab_size: int
    max_positions: int
    """Longest context, in tokens."""

    @property
    def num_parameters(self) -> int:
        """Number of weights: embeddings (shared with the output head), 12 D^2 + 13 D per layer, and the last norm."""
        d = self.hidden_size
        return (self.vocab_size + self.max_positions) * d + self.num_layers * (12 * d * d + 13 * d) + 2 * d

    def training_flops_per_token(self, context_length: int) -> float:
        """Return the FLOPs of the forward and backward pass per token (llm.c `gpt2_estimate_mfu`).

        Attention is counted as causal: only the lower triangle of the scores.
        """
        matmul = 12 * self.num_layers * self.hidden_size**2 + self.vocab_size * self.hidden_size
        return 6.0 * matmul + 6.0 * self.num_layers * self.hidden_size * context_length

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """Return the shape in a model's config.json, or None if it is incomplete.

        Accepts GPT-2's key names and those of newer model families.
        """
        sizes = [_find_int(config, keys) for keys in SHAPE_KEYS]
        known = [size for size in sizes if size is not None]
        return cls(*known) if len(known) == len(SHAPE_KEYS) else None


POSITION_KEYS = ("n_positions", "max_position_embeddings", "max_seq_len", "n_ctx", "max_sequence_length")
"""Keys of the longest context in a config.json: GPT-2's, that of newer model families, and of MPT and others."""
TEXT_KEYS = ("text_config", "llm_config", "language_config")
"""Keys of the part of a config.json that describes the language model of a model of several kinds of input."""
SHAPE_KEYS = (
    ("n_layer", "num_hidden_layers"),
    ("n_embd", "hidden_size"),
    ("n_head", "num_attention_heads"),
    ("vocab_size",),
    POSITION_KEYS,
)
"""Keys of each field of `ModelShape` in a config.json, in the order of the fields."""


def max_positions(config: Mapping[str, Any]) -> int | None:
    """Return the longest context in a model's config.json, in tokens, or None if it has none."""
    return _find_int(config, POSITION_KEYS)


def read_model_config(folder: str | Path) -> dict[str, Any] | None:
    """Return the config.json in a model's folder, or None if there is none or it is not a JSON object."""
    try:
        content = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def find_shape(model: str | Path) -> ModelShape | None:
    """Return the shape of a model with a short name or in a local folder, or None if it is not known."""
    if model in MODELS:
        return MODELS[str(model)].shape
    return ModelShape.from_config(read_model_config(model) or {})


def find_gpt2_shape(model: str | Path) -> ModelShape | None:
    """Return the shape of a model with GPT-2's layers, whose size and cost follow from it; None for other families."""
    is_other = model not in MODELS and (read_model_config(model) or {}).get("model_type", "gpt2") != "gpt2"
    return None if is_other else find_shape(model)


def _find_int(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    parts = [config, *(config[key] for key in TEXT_KEYS if isinstance(config.get(key), dict))]
    return next((part[key] for part in parts for key in keys if isinstance(part.get(key), int)), None)


@dataclass(frozen=True)
class KnownModel:
    """Model with a short name."""

    hub_id: str | None
    """Repository on the Hugging Face Hub; None for a model that is built locally, with random weights."""
    shape: ModelShape
    license_id: str | None = None
    """License of the weights, as an identifier of the Hub."""


@dataclass(frozen=True)
class KnownDataset:
    """Dataset with a short name."""

    hub_id: str | None
    """Repository on the Hugging Face Hub; None for the documentation that is part of Python."""
    config_name: str | None
    """Configuration ("subset") of the repository."""
    approx_train_tokens: int
    """Approximate GPT-2 tokens of the train split, for plans made before the dataset is downloaded."""
    approx_validation_tokens: int
    """Approximate GPT-2 tokens of the validation split."""


NANO_MODEL = "gpt2-nano"
NANO_VOCAB_SIZE = 4096
GPT2_VOCAB_SIZE = 50257

MODELS: dict[str, KnownModel] = {
    NANO_MODEL: KnownModel(
        None, ModelShape(num_layers=2, hidden_size=128, num_heads=4, vocab_size=NANO_VOCAB_SIZE, max_positions=1024)
    ),
    "gpt2": KnownModel("openai-community/gpt2", ModelShape(12, 768, 12, GPT2_VOCAB_SIZE, 1024), "mit"),
    "gpt2-medium": KnownModel("openai-community/gpt2-medium", ModelShape(24, 1024, 16, GPT2_VOCAB_SIZE, 1024), "mit"),
    "gpt2-large": KnownModel("openai-community/gpt2-large", ModelShape(36, 1280, 20, GPT2_VOCAB_SIZE, 1024), "mit"),
    "gpt2-xl": KnownModel("openai-community/gpt2-xl", ModelShape(48, 1600, 25, GPT2_VOCAB_SIZE, 1024), "mit"),
}

DATASETS: dict[str, KnownDataset] = {
    "pydocs": KnownDataset(None, None, 104_000, 9_000),
    "wikitext2": KnownDataset("Salesforce/wikitext", "wikitext-2-v1", 2_340_000, 243_600),
    "wikitext103": KnownDataset("Salesforce/wikitext", "wikitext-103-v1", 115_500_000, 243_600),
    "imdb": KnownDataset("stanfordnlp/imdb", "plain_text", 13_400_000, 1_490_000),
}
