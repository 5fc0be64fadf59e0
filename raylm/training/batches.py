"""Windows as tensors on the device that trains on them.

B is the batch, T the context length, N the tokens of a split.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from raylm.data.corpus import IGNORED, Windows
from raylm.training.distributed import Indices

RESIDENT_BYTES = 2**29
"""A split of at most so many lies on the GPU (wikitext103 has 236 MB); the windows of a larger one are copied there."""


class Batches:
    """The windows of a split, asked for by their numbers. No step waits for a GPU, or for a copy to it."""

    def __init__(self, windows: Windows, device: torch.device) -> None:
        """A GPU is given all tokens now."""
        self.windows, self._device = windows, device
        resident = device.type == "cuda" and windows.tokens.nbytes <= RESIDENT_BYTES
        self._stream_N = stream(windows).to(device) if resident else None

    def of(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of the windows with these numbers, as `Windows.batch` has them."""
        if self._stream_N is not None:
            return gathered(self.windows, self._stream_N, indices)
        inputs_BT, targets_BT = (torch.from_numpy(array) for array in self.windows.batch(indices))
        return _sent(inputs_BT, self._device), _sent(targets_BT, self._device)


def stream(windows: Windows) -> Tensor:
    """The tokens (N,) as signed integers of the same size, since torch does not gather unsigned ones of two bytes.

    The upper half of their range is negative there, which `gathered` undoes.
    """
    return torch.from_numpy(np.array(windows.tokens).view(f"i{windows.tokens.itemsize}"))


def gathered(windows: Windows, stream_N: Tensor, indices: Indices) -> tuple[Tensor, Tensor]:
    """The same as `Windows.batch`, put together where the stream is."""
    stride, mask = windows.context_length - 1, 2 ** (8 * stream_N.element_size()) - 1
    longest = max((min(stride, len(stream_N) - int(i) * stride) for i in indices), default=0)
    starts = torch.as_tensor(np.asarray(indices, dtype=np.int64) * stride)
    starts_B1 = _sent(starts if len(starts) else torch.zeros(1, dtype=torch.int64), stream_N.device).unsqueeze(-1)
    places_BT = starts_B1 + torch.arange(longest, device=stream_N.device)
    tokens_BT = stream_N[places_BT.clamp(max=len(stream_N) - 1)].long() & mask
    there_BT, end_of_text = places_BT < len(stream_N), windows.end_of_text
    inputs_BT = nn.functional.pad(torch.where(there_BT, tokens_BT, end_of_text), (1, 0), value=end_of_text)
    return inputs_BT, nn.functional.pad(torch.where(there_BT, tokens_BT, IGNORED), (0, 1), value=IGNORED)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On a device; to a GPU from pinned memory, so that nothing waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
