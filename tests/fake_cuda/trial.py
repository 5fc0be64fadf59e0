"""Trial on fake CUDA tensors, and the observers of its steps: operations, waits and memory."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config

from raylm.config.catalog import MODELS
from raylm.config.trial import TrialConfig
from raylm.data.corpus import Corpus, TokenSplit
from raylm.training.models import ModelSource

ALLOCATION_UNIT = 512
"""Bytes of which torch's CUDA allocator hands out multiples."""
NO_KERNEL = frozenset(
    [
        "device",
        "as_strided",
        "view",
        "_unsafe_view",
        "transpose",
        "t",
        "permute",
        "expand",
        "slice",
        "select",
        "split",
        "unbind",
        "unsqueeze",
        "squeeze",
        "detach",
        "alias",
        "reshape",
        "split_with_sizes",
        "_reshape_alias",
        "unfold",
        "lift_fresh",
        "empty",
        "empty_strided",
        "empty_like",
        "new_empty",
    ]
)
"""Operations that launch no kernel."""


def write_config(model: str, folder: Path) -> ModelSource:
    """Write the config.json of a GPT-2 and return it as a source with random weights."""
    shape = MODELS[model].shape
    GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.max_positions,
        n_embd=shape.hidden_size,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
    ).save_pretrained(folder)
    return ModelSource(model, str(folder), pretrained=False)


def random_corpus(trial: TrialConfig, num_windows: int, vocab_size: int = 50257) -> Corpus:
    """Return a corpus whose train split fills a number of windows, the last one half."""
    stride = trial.context_length - 1
    tokens = np.random.default_rng(0).integers(0, vocab_size, (num_windows - 1) * stride + stride // 2)
    split = TokenSplit(tokens.astype(np.uint16), len(tokens))
    validation = TokenSplit(split.tokens[: 3 * stride], 3 * stride)
    return Corpus(trial.dataset, "revision", "fingerprint", split, validation, vocab_size - 1, vocab_size, {})


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count of the operations on the device, without views and allocations: about one kernel each."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().split("::")[-1].split(".")[0]
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        if name not in NO_KERNEL and any(tensor.device.type == "cuda" for tensor in tensors):
            self.counts[name] += 1
        return result


class MemoryTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sum of the device storages that are alive, in the allocator's units, and its peak; runs out above a limit."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allocated = self.peak = 0
        self._limit_bytes = limit_bytes
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == "cuda":
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            size = -(-storage.nbytes() // ALLOCATION_UNIT) * ALLOCATION_UNIT
            if self._limit_bytes is not None and self.allocated + size > self._limit_bytes:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self._sizes[key] = size
            self.allocated += size
            self.peak = max(self.peak, self.allocated)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.allocated -= self._sizes.pop(key)
