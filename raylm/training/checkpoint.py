"""Checkpoints of a trial: a Hugging Face model folder, the optimizer's state, and a manifest written last.

Without pickle: tensors are in safetensors files, everything else is in the manifest's JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
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


def start_saving(
    folder: Path,
    config: TrialConfig,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    tokenizer_files: Mapping[str, bytes],
    progress: Progress,
    *,
    copied: bool = False,
) -> Callable[[], None]:
    """Save a checkpoint as far as the trial has to wait for it.

    Args:
        folder: empty folder of the checkpoint.
        copied: copy all tensors to the host's memory and write them later. Otherwise they are written now.

    Returns:
        Function that completes the checkpoint, in any thread: hashes its files and writes the manifest, which makes
        it count, after the files if they are not written yet.
    """
    weights, state, progress = model.state_dict(), _optimizer_tensors(optimizer), deepcopy(progress)
    if copied:
        weights, state = _copy_to_host(weights, state)

    def write_files() -> None:
        model.save_pretrained(folder, state_dict=weights)
        for name, content in tokenizer_files.items():
            (folder / name).write_bytes(content)
        save_file({name: value.cpu() for name, value in state.items()}, folder / manifest.OPTIMIZER_FILE)

    def complete() -> None:
        if copied:
            write_files()
        manifest.write(folder, config, progress)

    if not copied:
        write_files()
    return complete


def count_bytes(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of the tensors of a checkpoint."""
    tensors = [*model.parameters(), *model.buffers(), *_optimizer_tensors(optimizer).values()]
    return sum(tensor.nbytes for tensor in tensors)


def _copy_to_host(
    weights: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return copies of weights, of which tied ones stay tied, and of an optimizer's state on the host.

    Copies from a GPU, in pinned memory, run together and are waited for once.
    """
    unique = {_identity(tensor): tensor for tensor in weights.values()}
    copies = {key: _start_copy(tensor) for key, tensor in unique.items()}
    state_copies = {name: _start_copy(tensor) for name, tensor in state.items()}
    if any(tensor.is_cuda for tensor in unique.values()):
        torch.cuda.current_stream().synchronize()
    return {name: copies[_identity(tensor)] for name, tensor in weights.items()}, state_copies


def _start_copy(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=True)


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Return a key that two tensors of the same numbers in the same memory share."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the state that `start_saving` wrote into a new optimizer."""
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
                tensors[f"{number}.{name}.tensor"] = value.detach().contiguous()
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
