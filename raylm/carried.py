"""A model in a local folder, brought to machines that do not have it: packed here, unpacked into their caches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raylm import cache, hub
from raylm.models import ModelSource

Packed = Mapping[str, npt.NDArray[np.uint8]]
"""The bytes of a model's files by name, as arrays, which Ray's object store gives to a process without a copy."""


def pack(source: ModelSource) -> Packed | None:
    """The files of a model in a local folder; None where each machine fetches it, or it has none."""
    if source.folder is None or source.hub_id is not None:
        return None
    files = hub.model_files(Path(source.folder), weights=source.weights)
    return {file.name: np.fromfile(file, np.uint8) for file in files}


def unpack(source: ModelSource, packed: Packed) -> ModelSource:
    """The model with its files in this machine's cache, written there unless another trial has done so."""

    def build(folder: Path) -> None:
        for name, content in packed.items():
            content.tofile(folder / name)

    assert source.revision is not None, "a model in a local folder has one"
    return replace(source, folder=str(cache.made("models", source.revision, build)))
