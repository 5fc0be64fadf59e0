"""Validation loss, and the loss of a micro-batch under autocast. Does not depend on Ray.

B is the batch, T the context length. Losses are in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raylm.config.trial import TrialConfig
from raylm.data.corpus import Corpus, Windows
from raylm.errors import is_out_of_memory
from raylm.training.batches import Batches
from raylm.training.device import to_float64
from raylm.training.distributed import SINGLE_PROCESS, DistributedContext
from raylm.training.loss import summed_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MIN_EVAL_TOKENS = 8192
"""Minimum number of tokens of a micro-batch in an evaluation."""

LossFn = Callable[[Tensor, Tensor], Tensor]
"""Function of inputs and targets, (B, T) each, that returns their summed loss."""


def validation_loss(
    model: PreTrainedModel,
    corpus: Corpus,
    context_length: int,
    micro_batch_size: int,
    precision: str,
    dist_context: DistributedContext = SINGLE_PROCESS,
) -> float:
    """Return the mean negative log-likelihood per token of the validation split, each token counted once.

    If memory runs out, micro-batches are halved.

    Args:
        model: the model; its training mode is restored.
        corpus: the dataset.
        context_length: tokens per window.
        micro_batch_size: windows per micro-batch, at least; more if they are short (`MIN_EVAL_TOKENS`).
        precision: `float32`, `bfloat16` or `float16`.
        dist_context: the ranks that share the windows.
    """
    device = next(model.parameters()).device
    windows = Windows(corpus.validation.tokens, context_length, corpus.start_token_id)
    batches = Batches(windows, device)
    size = max(micro_batch_size, MIN_EVAL_TOKENS // context_length)
    loss_fn, rank_indices = partial(summed_loss, model), dist_context.rank_windows(np.arange(len(windows)))
    total_nll = to_float64(torch.zeros((), device=device))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        start = 0
        while start < len(rank_indices):
            try:
                nll = autocast_loss(loss_fn, *batches.get(rank_indices[start : start + size]), precision)
                total_nll += nll.to(total_nll.device)
                start += size
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                size = -(-size // 2)
    model.train(was_training)
    return dist_context.all_reduce(total_nll).item() / len(windows.tokens)


def autocast_loss(loss_fn: LossFn, inputs_BT: Tensor, targets_BT: Tensor, precision: str) -> Tensor:
    """Return the summed loss of a micro-batch (B, T), with matrix products in the given precision.

    Each weight is used once per pass: a cache would only hold a copy of all of them in 16 bits.
    """
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    with torch.autocast(inputs_BT.device.type, dtype, enabled=precision != "float32", cache_enabled=False):
        return loss_fn(inputs_BT, targets_BT)


def build_training_windows(config: TrialConfig, corpus: Corpus) -> Windows:
    """Return the windows of the part of the train split that a trial uses."""
    return Windows(corpus.train.tokens[: config.max_train_tokens], config.context_length, corpus.start_token_id)
