"""How a sweep stands while it runs: what is counted, what is estimated, what survives a way through JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from raylm.config.trial import TrialConfig
from raylm.events import DEFERRED, PAUSED
from raylm.monitor.state import CURVE_POINTS, SweepMonitor, SweepState
from raylm.results.progress import StepMetrics
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, QUEUED, RUNNING, Results, Row
from raylm.results.storage import Folder

TRIALS = [TrialConfig(seed=seed, context_length=64) for seed in range(4)]
RUNS = [trial.run_name for trial in TRIALS]


def watching(*statuses: str, retry_failed: bool = False, total: int = 4) -> SweepMonitor:
    rows = [Row(trial, status, "", None, None) for trial, status in zip(TRIALS, statuses, strict=False)]
    results = Results(Folder(Path("/nowhere")), rows)
    return SweepMonitor("s", results, total, lambda trial: 100.0, retry_failed=retry_failed)


def step(number: int, rate: float = 10.0) -> StepMetrics:
    return StepMetrics(number, 50, 5.0, number * 20, rate)


def test_what_an_earlier_command_left_on_its_way_waits() -> None:
    watch = watching(DONE, INTERRUPTED, FAILED, PENDING)
    assert watch.snapshot().counts == {DONE: 1, QUEUED: 2, FAILED: 1}
    assert watch.snapshot().num_finished == 2
    assert watching(DONE, FAILED, retry_failed=True, total=2).snapshot().counts == {DONE: 1, QUEUED: 1}


def test_a_trial_goes_through_its_states() -> None:
    watch = watching(*[PENDING] * 4)
    for trial in TRIALS:
        watch.on_trial_start(trial)
    assert watch.snapshot().counts == {RUNNING: 4}
    watch.on_retry(TRIALS[0], "its process died")
    watch.on_trial_end(TRIALS[1], DEFERRED, "out of memory")
    watch.on_trial_end(TRIALS[2], PAUSED, "")
    watch.on_trial_end(TRIALS[3], DIVERGED, "")
    assert watch.snapshot().counts == {QUEUED: 2, INTERRUPTED: 1, DIVERGED: 1}
    watch.on_trial_start(TRIALS[0])
    watch.on_trial_end(TRIALS[0], DONE, "")
    assert watch.snapshot().counts == {DONE: 1, QUEUED: 1, INTERRUPTED: 1, DIVERGED: 1}


def test_the_time_left_follows_from_the_work_that_is_done_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("raylm.monitor.state.time.monotonic", lambda: now)
    watch = watching(DONE, PENDING, PENDING)  # and one that a search has not suggested yet
    watch.on_trial_start(TRIALS[1])
    watch.on_step(TRIALS[1], step(10))
    assert watch.snapshot().seconds_left is None, "too early to say"
    now += 10.0
    assert watch.snapshot().share == pytest.approx((100 + 20) / 400)
    assert watch.snapshot().seconds_left == pytest.approx((80 + 100 + 100) / 20 * 10)
    watch.on_step(TRIALS[1], step(10, rate=0.1))
    assert watch.snapshot().running[0].step == step(10), "a step that was told before is not told again"
    watch.on_trial_end(TRIALS[1], DIVERGED, "")
    assert watch.snapshot().share == pytest.approx(200 / 400), "what is never done is not left either"


def test_no_less_time_is_left_than_the_slowest_trial_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("raylm.monitor.state.time.monotonic", lambda: now)
    watch = watching(PENDING, PENDING, total=2)
    for trial, rate in zip(TRIALS[:2], (1000.0, 0.1), strict=True):
        watch.on_trial_start(trial)
        watch.on_step(trial, step(40, rate))
    now += 10.0
    assert watch.snapshot().seconds_left == pytest.approx(10 * 20 / 0.1)


def test_the_best_so_far_is_the_lowest_of_a_dataset() -> None:
    watch = watching(PENDING)
    for trial, loss in zip(TRIALS, (9.0, 8.0, 8.5), strict=False):
        watch.on_evaluate(trial, {"adj_val_loss": loss})
    watch.on_evaluate(TRIALS[3], {"val_loss": 1.0})  # its adj val loss was not finite
    assert {dataset: (one.run, one.adj_val_loss) for dataset, one in watch.snapshot().best.items()} == (
        {"pydocs": (RUNS[1], 8.0)}
    )


def test_the_curve_of_a_running_trial_stays_short_and_whole() -> None:
    watch = watching(PENDING)
    watch.on_trial_start(TRIALS[0])
    for number in range(1, 1001):
        watch.on_step(TRIALS[0], StepMetrics(number, 1000, 5.0, number, 1.0))
    (running,) = watch.snapshot().running
    steps = [number for number, _ in running.curve]
    assert len(steps) < 2 * CURVE_POINTS and steps == sorted(set(steps)) and steps[0] == 1 and steps[-1] > 900


def test_a_trial_that_is_behind_an_earlier_word_begins_its_curve_anew() -> None:
    watch = watching(PENDING)
    watch.on_trial_start(TRIALS[0])
    for number in (30, 31, 10, 11):
        watch.on_step(TRIALS[0], step(number))
    assert watch.snapshot().running[0].step == step(11)
    assert [number for number, _ in watch.snapshot().running[0].curve] == [10, 11]


def test_a_state_is_the_same_after_a_way_through_json() -> None:
    watch = watching(DONE, PENDING, PENDING)
    watch.on_trial_start(TRIALS[1])
    watch.on_trial_start(TRIALS[2])
    watch.on_step(TRIALS[1], step(10))
    watch.on_evaluate(TRIALS[1], {"adj_val_loss": 9.0})
    told = watch.snapshot()
    assert SweepState.from_dict(json.loads(json.dumps(dataclasses.asdict(told)))) == told
