"""Models: loaded with the weights of their files, or initialized at random."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from raylm.config.catalog import MODELS, NANO_MODEL, max_positions
from raylm.data.model_files import ModelSource as ModelSource
from raylm.data.model_files import load_shape as load_shape
from raylm.data.model_files import resolve_model as resolve_model
from raylm.errors import UserError, one_line
from raylm.imports import pause_garbage_collection
from raylm.training import layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def max_context_length(model: PreTrainedModel) -> int | None:
    """Return the longest context of a model in tokens, or None if its configuration does not limit it."""
    return max_positions(model.config.get_text_config().to_dict())


@pause_garbage_collection()  # transformers imports the model's modules
def load_model(source: ModelSource, *, vocab_size: int, dropout: float | None, seed: int) -> PreTrainedModel:
    """Load a model in float32, with its weights or with random ones that depend on the seed only.

    Args:
        source: the model, from `resolve_model`.
        vocab_size: number of tokens of the tokenizer.
        dropout: probability for all dropout layers; None keeps the model's own.
        seed: seed of random weights.

    Raises:
        UserError: if it is not a causal language model, requires code from its repository, its vocabulary is smaller
            than the tokenizer's, or any of its tensors is missing or differs in shape from its config.json.
    """
    from transformers import AutoModelForCausalLM

    config = load_config(source, vocab_size)
    set_dropout(config, dropout, source.name)
    folder = source.fetch_files()
    if source.pretrained and folder is not None:
        return load_pretrained(folder, source.name, config)
    torch.manual_seed(seed)
    try:
        return layers.patch_layers(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    except ValueError as error:
        raise UserError(f"model {source.name}: is not a causal language model: {one_line(error)}") from error


def load_pretrained(folder: Path, name: str, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """Load a model with the weights of a folder.

    Raises:
        UserError: if a tensor is missing or has another shape than in config.json.
    """
    import transformers
    from transformers import AutoModelForCausalLM

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # its warnings are errors here
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
        )
    except Exception as error:  # safetensors, transformers and torch each raise their own
        raise UserError(f"model {name}: its weights cannot be loaded: {one_line(error)}") from error
    problems = [f"{key} is missing" for key in sorted(report["missing_keys"])]
    for key, shape, expected in sorted(report["mismatched_keys"]):
        problems.append(f"{key} has the shape {tuple(shape)}, expected {tuple(expected)}")
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"model {name}: its weights do not match its config.json: {', '.join(problems[:3])}{more}")
    return layers.patch_layers(model)


def load_config(source: ModelSource, vocab_size: int) -> PretrainedConfig:
    """Return the configuration of a model.

    Raises:
        UserError: if it cannot be used, or its vocabulary is smaller than the tokenizer's `vocab_size`.
    """
    from transformers import AutoConfig, GPT2Config

    if source.folder is None:
        nano = MODELS[NANO_MODEL].shape
        return GPT2Config(
            vocab_size=vocab_size,
            n_positions=nano.max_positions,
            n_embd=nano.hidden_size,
            n_layer=nano.num_layers,
            n_head=nano.num_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source.fetch_files(), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model {source.name}: its config.json cannot be used: {one_line(error)}") from error
    model_size = getattr(config.get_text_config(), "vocab_size", None)
    if model_size is None:
        raise UserError(f"model {source.name}: its config.json has no vocab_size; expected a causal language model")
    if model_size < vocab_size:
        raise UserError(f"model {source.name}: its tokenizer has {vocab_size:,} tokens, the model only {model_size:,}")
    return config


def set_dropout(config: PretrainedConfig, dropout: float | None, model_name: str) -> None:
    """Set all dropout probabilities of a configuration; None leaves them.

    Raises:
        UserError: if it has none.
    """
    if dropout is None:
        return
    config = config.get_text_config()
    keys = [key for key in config.to_dict() if key.endswith(("pdrop", "dropout"))]
    if not keys:
        raise UserError(f"model {model_name}: has no dropout in its config.json; leave dropout at None")
    for key in keys:
        setattr(config, key, dropout)


def enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """Store the input of each block only, and recompute it in the backward pass with the same dropout."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    for block in model.modules():
        if isinstance(block, GradientCheckpointingLayer):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=_same_dropout)


def _same_dropout() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """Return contexts of a block's forward pass and of its recomputation, by which both draw the same dropout on `mps`.

    `torch.utils.checkpoint` restores the generators of other devices only: without this, gradients on `mps` would be
    those of other masks (pytorch issue 127676).
    """
    if not torch.backends.mps.is_available():
        return contextlib.nullcontext(), contextlib.nullcontext()
    return contextlib.nullcontext(), _mps_generator(torch.mps.get_rng_state())


@contextlib.contextmanager
def _mps_generator(state: Tensor) -> Iterator[None]:
    """Set the state of the generator of `mps` for a while."""
    before = torch.mps.get_rng_state()
    torch.mps.set_rng_state(state)
    try:
        yield
    finally:
        torch.mps.set_rng_state(before)
