"""Rows with loss curves, without a results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raylm.config.trial import TrialConfig
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DONE, Row, SavedCheckpoint

FOLDER = Path("runs/sample")


def sample_row(val_loss: float | None = 3.0, *, status: str = DONE, seconds: float = 10.0, **fields: Any) -> Row:
    """Return a row of a trial with ten steps and 1,000 tokens per epoch; without a loss it has no checkpoint."""
    config = TrialConfig.from_record(fields)
    if val_loss is None:
        return Row(config, status, "", None, None)
    steps = 10 * config.epochs
    progress = Progress(steps, 4, step=steps, tokens_seen=1000 * config.epochs, training_seconds=seconds)
    progress.curve = [(step, val_loss + 1 / step) for step in range(5, steps + 1, 5)]
    for epoch in range(1, config.epochs + 1):
        loss = val_loss + config.epochs - epoch
        progress.evaluations.append(EvalMetrics(epoch, 10 * epoch, 1000 * epoch, loss, loss, loss))
    saved = SavedCheckpoint(f"launch-001/{config.run_name}/checkpoint_000000", progress)
    return Row(config, status, "", saved, saved)
