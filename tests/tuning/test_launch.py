"""Phases of a launch, with a runner that needs no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from ray import tune

from raylm.config.options import RunOptions
from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.errors import PauseReason
from raylm.events import TrialListener
from raylm.results import sweep_record
from raylm.results.folder import find_results, write_final_status
from raylm.results.rows import FAILED, Row
from raylm.results.storage import Folder
from raylm.tuning.launch import Launch
from raylm.tuning.prepare import PreparedInputs
from raylm.tuning.trial_queue import TrialQueue
from raylm.tuning.tuner import TuneResult, TuneRunner

SWEEP = Sweep(name="s", space={"seed": tune.grid_search([0, 1, 2])})
FIRST, SECOND, THIRD = SWEEP.trials()


class FakeRunner:
    """Runner in which trials fail, are deferred beside others, or are not started because the launch is paused."""

    def __init__(self, storage: Folder, *, deferred: list[TrialConfig], paused_by: list[TrialConfig]) -> None:
        self.storage, self.deferred, self.paused_by = storage, deferred, paused_by
        self.resources, self.precision = {"cpu": 1.0, "gpu": 0.0}, "float32"
        self.count_concurrent_trials = lambda max_concurrent: 1
        self.runs: list[tuple[str, list[int], bool]] = []
        """Name, seeds of the trials and `exclusive` of each run."""

    def run(self, launches: list[str], queue: TrialQueue, *_: Any, exclusive: bool = False) -> TuneResult:
        deferred: list[TrialConfig] = []
        trials = list(iter(queue.next_trial, None))
        self.runs.append((launches[-1], [trial.seed for trial in trials], exclusive))
        for trial in trials:
            if trial in self.paused_by:
                return TuneResult(False, PauseReason.INTERRUPTED, deferred)
            if trial in self.deferred and not exclusive:
                deferred.append(trial)
            else:
                write_final_status(self.storage, launches[-1], trial, FAILED, "it fails")
                queue.mark_finished(Row(trial, FAILED, "it fails", None, None))
        return TuneResult(queue.all_finished, None, deferred)


def run(
    storage: Folder,
    *,
    deferred: list[TrialConfig],
    paused_by: list[TrialConfig],
    retry_failed: bool = False,
    sweep: Sweep = SWEEP,
) -> tuple[FakeRunner, PauseReason | None, list[str]]:
    notes: list[str] = []
    results, options = find_results(sweep, storage), RunOptions(retry_failed=retry_failed)
    launch = Launch(sweep, PreparedInputs({}, {}, {}), results, options, "id", notes.append)
    runner = FakeRunner(storage, deferred=deferred, paused_by=paused_by)
    launch._runner = cast(TuneRunner, runner)
    return runner, launch.run(TrialListener()), notes


def test_all_trials_run_once(tmp_path: Path) -> None:
    runner, pause_reason, notes = run(Folder(tmp_path), deferred=[], paused_by=[])
    assert (runner.runs, pause_reason, notes) == ([("launch-001", [0, 1, 2], False)], None, [])
    record = sweep_record.load(Folder(tmp_path))
    assert record is not None and record.trials == [FIRST, SECOND, THIRD]
    assert [(launch.number, launch.precision, launch.sweep_id) for launch in record.launches] == [(1, "float32", "id")]


@pytest.mark.parametrize("retry_failed", [False, True])
def test_deferred_trials_run_again_one_at_a_time(tmp_path: Path, retry_failed: bool) -> None:
    """Trials that fail alone are not retried again by the same launch."""
    runner, pause_reason, notes = run(Folder(tmp_path), deferred=[SECOND], paused_by=[], retry_failed=retry_failed)
    assert runner.runs == [("launch-001", [0, 1, 2], False), ("launch-002", [1], True)]
    assert pause_reason is None and notes == ["1 trial ran out of memory; running again, one at a time"]


def test_search_continues_after_a_deferred_trial(tmp_path: Path) -> None:
    """Later trials are suggested only when the deferred one has ended."""
    sweep = Sweep(name="s", space={"seed": tune.choice([0, 1, 2])}, search="random", num_samples=3)
    runner, pause_reason, _ = run(Folder(tmp_path), deferred=[FIRST, SECOND, THIRD], paused_by=[], sweep=sweep)
    assert pause_reason is None and len(find_results(sweep, Folder(tmp_path)).rows) == 3
    assert [exclusive for _, _, exclusive in runner.runs] == [False, True] * 3


def test_paused_launch_leaves_deferred_trials_to_the_next(tmp_path: Path) -> None:
    runner, pause_reason, _ = run(Folder(tmp_path), deferred=[FIRST], paused_by=[SECOND])
    assert runner.runs == [("launch-001", [0, 1, 2], False)] and pause_reason is PauseReason.INTERRUPTED
    runner, pause_reason, _ = run(Folder(tmp_path), deferred=[], paused_by=[])
    assert [(seeds, exclusive) for _, seeds, exclusive in runner.runs] == [([0, 1, 2], False)] and pause_reason is None
