"""Batches of windows as tensors on the training device.

B is the batch, T the context length, N the tokens of a split.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from raylm.data.corpus import IGNORE_INDEX, WindowIndices, Windows
from raylm.training.device import ABILITIES

MAX_RESIDENT_BYTES = 2**29
"""Maximum size of a split that is stored on the GPU (wikitext103 has 236 MB); windows of a larger one are copied."""


class Batches:
    """Batches of a split's windows, by index. Training steps wait neither for the GPU nor for a copy to it."""

    def __init__(self, windows: Windows, device: torch.device) -> None:
        """Copy all tokens to a GPU, if they fit into `MAX_RESIDENT_BYTES`."""
        self.windows, self._device = windows, device
        is_resident = ABILITIES[device.type].has_own_memory and windows.tokens.nbytes <= MAX_RESIDENT_BYTES
        self._stream_N = to_signed_tensor(windows).to(device) if is_resident else None

    def get(self, indices: WindowIndices) -> tuple[Tensor, Tensor]:
        """Return inputs and targets (B, T) of the windows with these indices, as `Windows.get_batch`."""
        if self._stream_N is not None:
            return gather_batch(self.windows, self._stream_N, indices)
        inputs_BT, targets_BT = (torch.from_numpy(array) for array in self.windows.get_batch(indices))
        return _to_device(inputs_BT, self._device), _to_device(targets_BT, self._device)


def to_signed_tensor(windows: Windows) -> Tensor:
    """Return the tokens (N,) as signed integers of the same size: torch does not index unsigned 16-bit tensors.

    Ids in the upper half of the range become negative; `gather_batch` undoes this.
    """
    return torch.from_numpy(np.array(windows.tokens).view(f"i{windows.tokens.itemsize}"))


def gather_batch(windows: Windows, tokens_N: Tensor, indices: WindowIndices) -> tuple[Tensor, Tensor]:
    """Return the result of `Windows.get_batch`, computed on the device of the tokens (N,)."""
    stride, mask = windows.context_length - 1, 2 ** (8 * tokens_N.element_size()) - 1
    length = max((min(stride, len(tokens_N) - int(i) * stride) for i in indices), default=0)
    starts = torch.as_tensor(np.asarray(indices, dtype=np.int64) * stride)
    starts_B1 = _to_device(starts if len(starts) else torch.zeros(1, dtype=torch.int64), tokens_N.device).unsqueeze(-1)
    positions_BT = starts_B1 + torch.arange(length, device=tokens_N.device)
    tokens_BT = tokens_N[positions_BT.clamp(max=len(tokens_N) - 1)].long() & mask
    valid_BT, start_token_id = positions_BT < len(tokens_N), windows.start_token_id
    inputs_BT = nn.functional.pad(torch.where(valid_BT, tokens_BT, start_token_id), (1, 0), value=start_token_id)
    return inputs_BT, nn.functional.pad(torch.where(valid_BT, tokens_BT, IGNORE_INDEX), (0, 1), value=IGNORE_INDEX)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, if possible asynchronously, from pinned memory."""
    if ABILITIES[device.type].has_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
