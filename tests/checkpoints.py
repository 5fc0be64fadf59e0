"""Checkpoints of trials that never ran."""

from __future__ import annotations

from pathlib import Path

from raylm.config.trial import TrialConfig
from raylm.results import manifest
from raylm.results.progress import EvalMetrics, Progress

TRIAL = TrialConfig(seed=1)
STEPS_PER_EPOCH = 10


def save_checkpoint(
    folder: Path, name: str, *val_losses: float, num_epochs: int = 3, trial: TrialConfig = TRIAL
) -> Path:
    """Write a checkpoint after one epoch per val loss, and return its folder.

    Args:
        folder: results folder.
        name: launch and number of the checkpoint, as `launch-001/0`.
        num_epochs: epochs of the whole trial.
    """
    launch, _, number = name.partition("/")
    checkpoint = folder / launch / trial.run_name / f"checkpoint_{int(number):06d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(f"weights with {val_losses}".encode())
    progress = Progress(num_epochs * STEPS_PER_EPOCH, 1, step=len(val_losses) * STEPS_PER_EPOCH)
    progress.curve = [(1, 5.0), (2, 4.0)]
    for epoch, loss in enumerate(val_losses, start=1):
        progress.evaluations.append(EvalMetrics(epoch, epoch * STEPS_PER_EPOCH, 100 * epoch, loss + 1, loss, loss + 2))
    manifest.write(checkpoint, trial, progress)
    return checkpoint
