"""Checkpoints of a trial: a Hugging Face model folder, the optimizer's state, and a manifest written last.

Without pickle: tensors are in safetensors files, everything else is in the manifest's JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raylm.config.trial import TrialConfig
from raylm.errors import WorkError
from raylm.results import manifest
from raylm.results.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save(
    folder: Path,
    config: TrialConfig,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    tokenizer_files: Mapping[str, bytes],
    progress: Progress,
) -> None:
    """Write a checkpoint into an empty folder."""
    model.save_pretrained(folder)
    for name, content in tokenizer_files.items():
        (folder / name).write_bytes(content)
    save_file(_optimizer_tensors(optimizer), folder / manifest.OPTIMIZER_FILE)
    manifest.write(folder, config, progress)


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the state that `save` wrote into a new optimizer."""
    tensors = load_file(folder / manifest.OPTIMIZER_FILE)
    is_fused = {p: bool(group.get("fused")) for group in optimizer.param_groups for p in group["params"]}
    for number, parameter in enumerate(_parameters(optimizer)):
        state = optimizer.state[parameter]
        for key in [key for key in tensors if key.startswith(f"{number}.")]:
            _, name, kind = key.split(".")
            value = tensors[key]
            if kind == "int":
                state[name] = int(value.item())
            else:  # AdamW counts steps on the CPU, unless it is fused
                state[name] = value.to(parameter.device) if value.dim() or is_fused[parameter] else value


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state by `number.name.kind`: parameter number, name of the value, `int` or `tensor`."""
    tensors = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{name}.tensor"] = value.detach().contiguous().cpu()
            else:
                tensors[f"{number}.{name}.int"] = torch.tensor(int(value))
    return tensors


def load_progress(folder: Path, config: TrialConfig, total_steps: int) -> Progress:
    """Return the progress of a trial at the time of its checkpoint.

    Raises:
        WorkError: if the folder is not a valid checkpoint of this trial, or its number of steps differs.
    """
    content = manifest.verify(folder)
    if content is None or content.trial_id != config.id:
        raise WorkError(f"{folder} is not a checkpoint of trial {config.run_name}")
    progress = content.progress
    if progress.total_steps != total_steps:
        steps = f"{progress.total_steps:,} steps, expected {total_steps:,}"
        raise WorkError(f"{folder} is a checkpoint of a trial of {steps}: its data has changed since")
    return progress
