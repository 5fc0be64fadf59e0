"""Summed losses of windows, and the validation loss. Knows no Ray.

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
from raylm.training.distributed import SINGLE_PROCESS, DistributedContext
from raylm.training.loss import summed_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MIN_EVAL_TOKENS = 8192
"""Tokens that go through the model at a time in an evaluation, at least."""

LossFn = Callable[[Tensor, Tensor], Tensor]
"""The summed loss of inputs and targets, (B, T) each."""


def validation_loss(
    model: PreTrainedModel,
    corpus: Corpus,
    context_length: int,
    micro_batch_size: int,
    precision: str,
    dist_context: DistributedContext = SINGLE_PROCESS,
) -> float:
    """Mean negative log-likelihood of the validation split's tokens, each counted once, in windows of this length."""
    device = next(model.parameters()).device
    windows = Windows(corpus.validation.tokens, context_length, corpus.eos_token_id)
    batches = Batches(windows, device)
    at_once = max(micro_batch_size, MIN_EVAL_TOKENS // context_length)
    loss, mine = partial(summed_loss, model), dist_context.rank_windows(np.arange(len(windows)))
    total = torch.zeros((), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        start = 0
        while start < len(mine):
            try:
                total += autocast_loss(loss, *batches.get(mine[start : start + at_once]), precision)
                start += at_once
            except RuntimeError as error:
                if at_once == 1 or not is_out_of_memory(error):
                    raise
                at_once = -(-at_once // 2)
    model.train(was_training)
    return dist_context.all_reduce(total).item() / len(windows.tokens)


def autocast_loss(loss_fn: LossFn, inputs_BT: Tensor, targets_BT: Tensor, precision: str) -> Tensor:
    """Summed loss of some windows."""
    with torch.autocast(inputs_BT.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return loss_fn(inputs_BT, targets_BT)


def build_training_windows(config: TrialConfig, corpus: Corpus) -> Windows:
    """The part of the train split that a trial is trained on."""
    return Windows(corpus.train.tokens[: config.max_train_tokens], config.context_length, corpus.eos_token_id)
