"""Events of two trials for experiment trackers, and an environment without the user's trackers."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from raylm.config.trial import TrialConfig
from raylm.monitor.trackers import dispatcher
from raylm.monitor.trackers.dispatcher import TrackerPool
from raylm.monitor.trackers.options import TrackerOptions
from raylm.results.progress import LOSS_NAMES, EvalMetrics, Progress, StepMetrics
from raylm.results.rows import INTERRUPTED, PENDING, Row, SavedCheckpoint
from raylm.results.storage import Folder

API_KEY = "b3f1c0ffee5ca1ab1e0ddba11deadbeefca11ab1"
OFFLINE = TrackerOptions("offline", None, None)
NO_WANDB = TrackerOptions("disabled", None, None)
TRIALS = [TrialConfig(context_length=64, seed=seed) for seed in (0, 1)]
SWEEP_ID = "abcd1234"
NUM_STEPS = 30
EPOCHS = {10: (5.9, 5.5, 9.5), 20: (5.0, 5.2, 9.0), 30: (4.1, 5.4, 9.3)}
"""Train loss, val loss and adj val loss by step: the second epoch is the best."""


@pytest.fixture(autouse=True)
def tracker_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set an empty home folder, remove all settings of trackers from the environment, and allow for a slow machine."""
    monkeypatch.setattr(dispatcher, "GRACE_SECONDS", 120.0)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


class TrackedTrials:
    """Context manager that sends events of both trials to trackers and collects the notes for the user."""

    def __init__(self, folder: Path, options: TrackerOptions, rows: list[Row] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = rows or [Row(trial, PENDING, "", None, None) for trial in TRIALS]
        self.notes: list[str] = []
        self.pool = TrackerPool(options, Folder(folder), SWEEP_ID, rows, self.notes.append)

    def train(self, first_step: int, last_step: int) -> None:
        """Start both trials and send their steps and evaluations."""
        for trial in TRIALS:
            self.pool.on_trial_start(trial)
        for step in range(first_step, last_step + 1):
            for trial in TRIALS:
                metrics = StepMetrics(step, NUM_STEPS, 6 - step / 10, step * 512, 1000.0)
                self.pool.on_step(trial, metrics)
                self.pool.on_step(trial, metrics)  # as if no newer step was polled
                if step in EPOCHS:
                    self.pool.on_evaluate(trial, evaluation(step))

    def end(self, status: str) -> None:
        """End both trials."""
        for trial in TRIALS:
            self.pool.on_trial_end(trial, status, "")

    def __enter__(self) -> TrackedTrials:
        self.pool.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.__exit__(*exception)


def evaluation(step: int) -> dict[str, float]:
    """Return an evaluation as a trial reports it, with the best one so far."""
    best_step = min((other for other in EPOCHS if other <= step), key=lambda other: EPOCHS[other][1])
    return {
        **{"epoch": step // 10, "step": step, "tokens_seen": step * 512, "tokens_per_second": 1000.0},
        **dict(zip(LOSS_NAMES, EPOCHS[step], strict=True)),
        **{f"best_{name}": loss for name, loss in zip(LOSS_NAMES, EPOCHS[best_step], strict=True)},
        "best_epoch": best_step // 10,
    }


def track_launch(
    folder: Path, options: TrackerOptions, *, rows: list[Row] | None = None, last_step: int = NUM_STEPS
) -> list[str]:
    """Track both trials from their first step, or from their rows, to the last step; return the notes."""
    first_step = 1 + max((metrics.step for row in rows or [] for metrics in row.evaluations), default=0)
    with TrackedTrials(folder, options, rows) as tracked:
        tracked.train(first_step, last_step)
        tracked.end("done" if last_step == NUM_STEPS else "paused")
    return tracked.notes


def rows_after(step: int) -> list[Row]:
    """Return the rows of both trials, interrupted after a step."""
    evaluations = [EvalMetrics(at // 10, at, at * 512, *losses) for at, losses in EPOCHS.items() if at <= step]
    saved = SavedCheckpoint("", Progress(NUM_STEPS, 8, step=step, evaluations=evaluations))
    return [Row(trial, INTERRUPTED, "", saved, saved) for trial in TRIALS]


def tracker_processes(name: str) -> list[psutil.Process]:
    """Return the processes of a tracker that this process has started."""
    command = ["-m", "raylm.monitor.trackers.worker", name]
    return [child for child in psutil.Process().children() if child.cmdline()[1:] == command]


def files_with(text: str, folder: Path) -> list[Path]:
    """Return the files that contain a text."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
