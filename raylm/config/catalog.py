"""The models and datasets that raylm knows by name: shapes, sizes and hub ids. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """What the cost of a GPT-2-like network follows from."""

    layers: int
    width: int
    """Size of the residual stream, D."""
    heads: int
    vocabulary: int
    positions: int
    """Longest context, in tokens."""

    @property
    def parameters(self) -> int:
        """Weights of the network, the tied head counted once: embeddings, 12 D^2 + 13 D a layer, the last norm."""
        d = self.width
        return (self.vocabulary + self.positions) * d + self.layers * (12 * d * d + 13 * d) + 2 * d

    def training_flops_per_token(self, context_length: int) -> float:
        """Forward and backward FLOPs a token, causal attention counted once (llm.c `gpt2_estimate_mfu`)."""
        matmul = 12 * self.layers * self.width**2 + self.vocabulary * self.width
        return 6.0 * matmul + 6.0 * self.layers * self.width * context_length

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """The shape that a model's config.json tells, under the names of any family; None where it does not."""
        names = [
            ("n_layer", "num_hidden_layers"),
            ("n_embd", "hidden_size"),
            ("n_head", "num_attention_heads"),
            ("vocab_size",),
            POSITION_NAMES,
        ]
        found = [next((config[name] for name in pair if isinstance(config.get(name), int)), None) for pair in names]
        numbers = [number for number in found if number is not None]
        return cls(*numbers) if len(numbers) == len(names) else None


POSITION_NAMES = ("n_positions", "max_position_embeddings")
"""What the families call the longest context in a config.json."""


def positions(config: Mapping[str, Any]) -> int | None:
    """The longest context in a model's config.json, in tokens."""
    return next((config[name] for name in POSITION_NAMES if isinstance(config.get(name), int)), None)


@dataclass(frozen=True)
class KnownModel:
    """A model with a name of its own."""

    hub_id: str | None
    """Repository on the Hugging Face Hub; None: made here, with random weights."""
    shape: Shape
    licence: str | None = None
    """Of its weights, in the hub's words."""


@dataclass(frozen=True)
class KnownDataset:
    """A dataset with a name of its own."""

    hub_id: str | None
    """Repository on the Hugging Face Hub; None: part of every Python."""
    config: str | None
    """Configuration ("subset") of the repository."""
    about_train_tokens: int
    """GPT-2 tokens of the train split, roughly: a plan made before the data was fetched says so."""
    about_validation_tokens: int


NANO = "gpt2-nano"
NANO_VOCABULARY = 4096
GPT2_VOCABULARY = 50257

MODELS: dict[str, KnownModel] = {
    NANO: KnownModel(None, Shape(layers=2, width=128, heads=4, vocabulary=NANO_VOCABULARY, positions=1024)),
    "gpt2": KnownModel("openai-community/gpt2", Shape(12, 768, 12, GPT2_VOCABULARY, 1024), "mit"),
    "gpt2-medium": KnownModel("openai-community/gpt2-medium", Shape(24, 1024, 16, GPT2_VOCABULARY, 1024), "mit"),
    "gpt2-large": KnownModel("openai-community/gpt2-large", Shape(36, 1280, 20, GPT2_VOCABULARY, 1024), "mit"),
    "gpt2-xl": KnownModel("openai-community/gpt2-xl", Shape(48, 1600, 25, GPT2_VOCABULARY, 1024), "mit"),
}

DATASETS: dict[str, KnownDataset] = {
    "pydocs": KnownDataset(None, None, 104_000, 9_000),
    "wikitext2": KnownDataset("Salesforce/wikitext", "wikitext-2-v1", 2_340_000, 243_600),
    "wikitext103": KnownDataset("Salesforce/wikitext", "wikitext-103-v1", 115_500_000, 243_600),
    "imdb": KnownDataset("stanfordnlp/imdb", "plain_text", 13_400_000, 1_490_000),
}
