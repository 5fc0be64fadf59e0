"""The models and datasets that raylm knows by name: shapes, sizes and hub ids. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """What the cost of a GPT-2-like network follows from."""

    num_layers: int
    hidden_size: int
    """Size of the residual stream, D."""
    num_heads: int
    vocab_size: int
    max_positions: int
    """Longest context, in tokens."""

    @property
    def num_parameters(self) -> int:
        """Weights of the network, the tied head counted once: embeddings, 12 D^2 + 13 D a layer, the last norm."""
        d = self.hidden_size
        return (self.vocab_size + self.max_positions) * d + self.num_layers * (12 * d * d + 13 * d) + 2 * d

    def training_flops_per_token(self, context_length: int) -> float:
        """Forward and backward FLOPs a token, causal attention counted once (llm.c `gpt2_estimate_mfu`)."""
        matmul = 12 * self.num_layers * self.hidden_size**2 + self.vocab_size * self.hidden_size
        return 6.0 * matmul + 6.0 * self.num_layers * self.hidden_size * context_length

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """The shape that a model's config.json tells, under the names of any family; None where it does not."""
        names = [
            ("n_layer", "num_hidden_layers"),
            ("n_embd", "hidden_size"),
            ("n_head", "num_attention_heads"),
            ("vocab_size",),
            POSITION_KEYS,
        ]
        found = [next((config[name] for name in pair if isinstance(config.get(name), int)), None) for pair in names]
        numbers = [number for number in found if number is not None]
        return cls(*numbers) if len(numbers) == len(names) else None


POSITION_KEYS = ("n_positions", "max_position_embeddings")
"""What the families call the longest context in a config.json."""


def max_positions(config: Mapping[str, Any]) -> int | None:
    """The longest context in a model's config.json, in tokens."""
    return next((config[name] for name in POSITION_KEYS if isinstance(config.get(name), int)), None)


@dataclass(frozen=True)
class KnownModel:
    """A model with a name of its own."""

    hub_id: str | None
    """Repository on the Hugging Face Hub; None: made here, with random weights."""
    shape: ModelShape
    license_id: str | None = None
    """Of its weights, in the hub's words."""


@dataclass(frozen=True)
class KnownDataset:
    """A dataset with a name of its own."""

    hub_id: str | None
    """Repository on the Hugging Face Hub; None: part of every Python."""
    config_name: str | None
    """Configuration ("subset") of the repository."""
    approx_train_tokens: int
    """GPT-2 tokens of the train split, roughly: a plan made before the data was fetched says so."""
    approx_validation_tokens: int


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
