"""A results folder with a row of every status."""

from __future__ import annotations

import json
from pathlib import Path

from raylm import load_results
from raylm.config.trial import TrialConfig
from raylm.results import manifest, sweep_record
from raylm.results import rows as row_states
from raylm.results.folder import write_final_status
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import SweepRows
from raylm.results.storage import Folder

DONE = TrialConfig(dataset="wikitext2", model="gpt2-xl", context_length=512, batch_size=8, seed=3, dropout=0.1)
DIVERGED = TrialConfig(dataset="imdb", model="gpt2", context_length=256, batch_size=64, learning_rate=0.5)
FAILED = TrialConfig(dataset="owner/name:part", model="owner/model", context_length=2048)
INTERRUPTED = TrialConfig(epochs=3)
PENDING = TrialConfig(epochs=2)


def save_checkpoint(
    folder: Path, config: TrialConfig, number: int, total_steps: int, *evaluations: EvalMetrics
) -> None:
    """Write a checkpoint at the step of its last evaluation."""
    checkpoint = folder / "launch-001" / config.run_name / f"checkpoint_{number:06d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    progress = Progress(total_steps, 4, evaluations[-1].step, evaluations[-1].tokens_seen, evaluations=[*evaluations])
    progress.first_loss, progress.training_seconds = 4.75, 12.5
    manifest.write(checkpoint, config, progress)


def write_sample_folder(folder: Path) -> SweepRows:
    """Write checkpoints and a record into a folder; return a row of every status."""
    first, second = EvalMetrics(1, 10, 5000, 2.6912, 2.5151, 2.8749), EvalMetrics(2, 20, 10_000, 2.4, 2.6, 2.97)
    save_checkpoint(folder, DONE, 0, 20, first)
    save_checkpoint(folder, DONE, 1, 20, first, second)
    save_checkpoint(folder, DIVERGED, 0, 30, EvalMetrics(1, 10, 700, 9.0, 8.125, 10.006))
    write_final_status(Folder(folder), "launch-001", DIVERGED, row_states.DIVERGED, "the loss of step 17 is not finite")
    write_final_status(Folder(folder), "launch-001", FAILED, row_states.FAILED, 'RuntimeError: "out of memory", twice')
    save_checkpoint(folder, INTERRUPTED, 0, 30, EvalMetrics(1, 10, 700, 9.0, 7.0, 7.996))
    trials = [{"config": config.as_dict()} for config in (DONE, DIVERGED, FAILED, INTERRUPTED, PENDING)]
    (folder / sweep_record.RECORD_FILE).write_text(
        json.dumps({"version": sweep_record.FORMAT_VERSION, "name": "sample", "trials": trials})
    )
    return load_results(folder)
