"""Tiny random models of families that transformers has: a configuration for each."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 448,  # more than the tokenizer's 400: padded
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
FAMILIES: dict[str, dict[str, Any]] = {
    "GPT2": GPT2_SIZES,
    "Llama": {"num_key_value_heads": 1},
    "Mistral": {"sliding_window": 16},
    "Mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Qwen2Moe": {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "Qwen3Moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32, "head_dim": 16},
    "Gemma": {"head_dim": 16},
    "Gemma2": {"head_dim": 16},
    "Gemma3Text": {"head_dim": 16},
    "Phi": {},
    "Phi3": {},
    "OPT": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.0},
    "GPTNeo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "GPTNeoX": {},
    "GPTJ": {**GPT2_SIZES, "rotary_dim": 8},
    "CodeGen": {**GPT2_SIZES, "n_head": 4, "num_attention_heads": 4, "rotary_dim": 8},
    "GPTBigCode": GPT2_SIZES,
    "OpenAIGPT": GPT2_SIZES,
    "Bloom": {"n_layer": 2, "n_head": 2},
    "Falcon": {},
    "Mpt": {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 128},
    "Mamba": {},
    "Mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "FalconMamba": {},
    "Olmo": {},
    "Olmo2": {},
    "SmolLM3": {},
    "StableLm": {},
    "Starcoder2": {},
    "Cohere": {},
    "Cohere2": {"head_dim": 16},
    "Granite": {},
    "XGLM": {"d_model": 32, "num_layers": 2, "attention_heads": 2, "ffn_dim": 64, "dropout": 0.0},
    "RecurrentGemma": {
        "lru_width": 32,
        "head_dim": 16,
        "num_key_value_heads": 1,
        "block_types": ["recurrent", "attention"],
    },
    "Glm": {"head_dim": 16},
    "Persimmon": {},
    "Helium": {"head_dim": 16},
    "Arcee": {},
    "Ernie4_5": {},
}
"""Fields of each family's configuration beside `SIZES`, by the beginning of its class's name."""


def build_config(family: str) -> transformers.PretrainedConfig:
    """Return the configuration of a family's tiny model."""
    config: transformers.PretrainedConfig = getattr(transformers, f"{family}Config")(**{**SIZES, **FAMILIES[family]})
    return config


def build_model(family: str) -> transformers.PreTrainedModel:
    """Return a family's tiny model with random weights, the same each time."""
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(build_config(family))
