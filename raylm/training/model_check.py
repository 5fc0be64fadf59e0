"""Checks of a model before anything starts: it loads, takes the trial, and predicts each token from earlier ones only.

The test of causality knows no names: it changes the last token of an input, which must not change an earlier logit.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from raylm.config.catalog import MODELS
from raylm.errors import UserError, one_line
from raylm.training import models
from raylm.training.models import ModelSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

MAX_CHECKED_PARAMETERS = 100_000_000
"""Weights up to which a model is loaded as it is; of a larger one, a small relative with the same layers is checked."""
PROBE_LENGTH = 12
"""Tokens of the input that is changed."""
RELATIVE_TOLERANCE = 1e-4
"""Change of a logit that is rounding, relative to the largest logit; a model that sees later tokens changes them by
more than a hundredth."""
SMALL_SIZES = {
    "vocab_size": 64,
    "intermediate_size": 32,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "ffn_dim": 32,
    "n_inner": 32,
    "num_local_experts": 2,
    "num_experts": 2,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
}
"""Sizes of the small relative, where its configuration has them and they are larger."""


def check_model(source: ModelSource, *, vocab_size: int, dropout: float | None) -> None:
    """Check that a model can be trained on a corpus with this dropout.

    Args:
        source: the model.
        vocab_size: number of tokens of the tokenizer.
        dropout: dropout of the trial.

    Raises:
        UserError: if its weights are missing, its vocabulary is smaller than the tokenizer's, it has no dropout to set,
            it is not a causal language model, or its positions see later ones.
    """
    import transformers

    transformers.logging.set_verbosity_error()  # its warnings are errors here
    config = check_config(source, vocab_size=vocab_size, dropout=dropout)
    if source.name in MODELS:
        return
    if _count_parameters(config, source.name) <= MAX_CHECKED_PARAMETERS:
        model: PreTrainedModel | None = models.load_model(source, vocab_size=vocab_size, dropout=dropout, seed=0)
    else:
        model = next(_build_relatives(config), None)
    if model is not None:
        check_causality(model, source.name)


def check_config(source: ModelSource, *, vocab_size: int, dropout: float | None) -> PretrainedConfig:
    """Check that a model's configuration takes a tokenizer and a dropout, and return it with them.

    Raises:
        UserError: if its vocabulary is smaller than the tokenizer's, or it has no dropout to set.
    """
    config = models.load_config(source, vocab_size)
    models.set_dropout(config, dropout, source.name)
    return config


def _count_parameters(config: PretrainedConfig, name: str) -> int:
    """Return the number of weights of a configuration's model, built without memory for them.

    Raises:
        UserError: if transformers has no causal language model for it.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(copy.deepcopy(config))
    except Exception as error:  # each family raises its own
        raise UserError(f"model {name}: is not a causal language model: {one_line(error)}") from error
    return sum(parameter.numel() for parameter in model.parameters())


def _build_relatives(config: PretrainedConfig) -> Iterator[PreTrainedModel]:
    """Yield models with random weights and the kinds of layers of a configuration, of few layers and small sizes.

    The next one is for a family whose configuration does not take the sizes of the first.
    """
    from transformers import AutoModelForCausalLM

    for sizes in (SMALL_SIZES, {"vocab_size": SMALL_SIZES["vocab_size"]}):
        small = copy.deepcopy(config)
        try:
            _shrink(small.get_text_config(), sizes)
            yield AutoModelForCausalLM.from_config(small, dtype=torch.float32)
        except Exception:
            continue


def _shrink(config: PretrainedConfig, sizes: dict[str, int]) -> None:
    """Reduce a configuration in place to smaller sizes and the layers up to the first of each kind, at least two."""
    num_layers = config.num_hidden_layers
    lists = {k: v for k, v in vars(config).items() if isinstance(v, list) and len(v) == num_layers}
    kept = 2
    for values in lists.values():
        kinds = list(map(repr, values))
        kept = max([kept, *(kinds.index(kind) + 1 for kind in set(kinds))])
    for name, values in lists.items():
        setattr(config, name, values[:kept])
    config.num_hidden_layers = min(num_layers, kept)
    for name, size in sizes.items():
        value: Any = getattr(config, name, None)
        if isinstance(value, int) and value > size:
            setattr(config, name, size)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(config, name, 0)


def check_causality(model: PreTrainedModel, name: str) -> None:
    """Check that changing the last token of an input changes no earlier logit.

    Raises:
        UserError: if it does, or the model cannot be computed from tokens alone.
    """
    vocab_size = model.config.get_text_config().vocab_size
    inputs_BT = torch.arange(1, PROBE_LENGTH + 1).remainder(vocab_size).repeat(2, 1)
    inputs_BT[1, -1] = vocab_size - 1 if inputs_BT[1, -1] != vocab_size - 1 else 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits.float()
    except Exception as error:  # each family raises its own
        raise UserError(f"model {name}: cannot be computed from tokens alone: {one_line(error)}") from error
    finally:
        model.train(was_training)
    if logits_BTV.shape[:2] != inputs_BT.shape:
        shape = tuple(logits_BTV.shape)
        raise UserError(f"model {name}: gives logits of the shape {shape}; expected one row per token")
    earlier_BTV = logits_BTV[:, :-1]
    change = (earlier_BTV[0] - earlier_BTV[1]).abs().max()
    if not change <= RELATIVE_TOLERANCE * earlier_BTV.abs().max().clamp(min=1e-3):
        kind = type(model).__name__
        kind += " with is_decoder false" if getattr(model.config, "is_decoder", None) is False else ""
        raise UserError(
            f"model {name}: its positions see later ones, so its loss means nothing ({kind}); "
            "expected a causal language model"
        )
