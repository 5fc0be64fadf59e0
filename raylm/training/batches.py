"""Windows as tensors on the device that trains on them.

B is the batch, T the context length, N the tokens of a split.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from raylm.data.corpus import IGNORE_INDEX, WindowIndices, Windows

MAX_RESIDENT_BYTES = 2**29
"""A split of at most so many lies on the GPU (wikitext103 has 236 MB); the windows of a larger one are copied there."""


class Batches:
    """The windows of a split, asked for by their numbers. No step waits for a GPU, or for a copy to it."""

    def __init__(self, windows: Windows, device: torch.device) -> None:
        """A GPU is given all tokens now."""
        self.windows, self._device = windows, device
        resident = device.type == "cuda" and windows.tokens.nbytes <= MAX_RESIDENT_BYTES
        self._stream_N = to_signed_tensor(windows).to(device) if resident else None

    def get(self, indices: WindowIndices) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of the windows with these numbers, as `Windows.batch` has them."""
        if self._stream_N is not None:
            return gather_batch(self.windows, self._stream_N, indices)
        inputs_BT, targets_BT = (torch.from_numpy(array) for array in self.windows.get_batch(indices))
        return _to_device(inputs_BT, self._device), _to_device(targets_BT, self._device)


def to_signed_tensor(windows: Windows) -> Tensor:
    """The tokens (N,) as signed integers of the same size, since torch does not gather unsigned ones of two bytes.

    The upper half of their range is negative there, which `gathered` undoes.
    """
    return torch.from_numpy(np.array(windows.tokens).view(f"i{windows.tokens.itemsize}"))


def gather_batch(windows: Windows, tokens_N: Tensor, indices: WindowIndices) -> tuple[Tensor, Tensor]:
    """The same as `Windows.batch`, put together where the stream is."""
    stride, mask = windows.context_length - 1, 2 ** (8 * tokens_N.element_size()) - 1
    longest = max((min(stride, len(tokens_N) - int(i) * stride) for i in indices), default=0)
    starts = torch.as_tensor(np.asarray(indices, dtype=np.int64) * stride)
    starts_B1 = _to_device(starts if len(starts) else torch.zeros(1, dtype=torch.int64), tokens_N.device).unsqueeze(-1)
    places_BT = starts_B1 + torch.arange(longest, device=tokens_N.device)
    tokens_BT = tokens_N[places_BT.clamp(max=len(tokens_N) - 1)].long() & mask
    there_BT, end_of_text = places_BT < len(tokens_N), windows.eos_token_id
    inputs_BT = nn.functional.pad(torch.where(there_BT, tokens_BT, end_of_text), (1, 0), value=end_of_text)
    return inputs_BT, nn.functional.pad(torch.where(there_BT, tokens_BT, IGNORE_INDEX), (0, 1), value=IGNORE_INDEX)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """On a device; to a GPU from pinned memory, so that nothing waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
