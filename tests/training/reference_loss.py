"""Losses by transformers' own loss function, and the tolerances of comparisons with them."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from raylm.data.corpus import Windows

FLOAT32_ROUNDING = 1e-6
"""Relative tolerance of losses of the same weights, summed in another order: 16 units of float32's 2^-24."""
BFLOAT16_ROUNDING = 2**-8
"""Relative tolerance of losses with products in bfloat16: each of the two operands is rounded by up to 2^-9."""
TRAINING_ROUNDING = 5e-6
"""Relative tolerance of losses after training with sums in another order, with Adafactor at a learning rate of 1e-3.

Float32 alone leaves 1.6e-7, three units of 2^-24. The rest follows from the gradient of a key's bias, which is rounding
alone, since attention does not depend on that bias. Adafactor divides it by its own root mean square all the same, and
clips the step of the whole `c_attn.bias` by a root mean square that includes it: the biases of queries and values move
by different shares of the learning rate. With micro-batches of 8 and of 4, 3, 2 or 1 windows losses differ by 2e-6 at
a rate of 1e-3, by 5e-7 at 3e-4, and by 1.6e-7 at any rate if that gradient is zero or nothing is clipped. The largest
difference in tests/training is 3.3e-6 with AVX2, and 2.2e-6 with AVX-512 or no vector instructions.
"""


def mean_loss(model: PreTrainedModel, windows: Windows) -> float:
    """Return the mean loss per token of all windows, in nats, one window at a time."""
    total = 0.0
    with torch.no_grad():
        for index in range(len(windows)):
            input_ids = torch.from_numpy(windows.get_batch([index])[0])
            total += model(input_ids=input_ids, labels=input_ids).loss.item() * windows.count_tokens([index])
    return total / len(windows.tokens)
