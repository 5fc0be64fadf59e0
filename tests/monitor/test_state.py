"""State of a running sweep: counts, estimates, late and repeated events, JSON."""

from __future__ import annotations

import math
import sys
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from rich.console import Console as RichConsole

from raylm.config.trial import TrialConfig
from raylm.events import DEFERRED, PAUSED
from raylm.monitor.progress_view import render_state
from raylm.monitor.state import CURVE_POINTS, SweepMonitor, SweepState
from raylm.results.measures import NATS_PER_BYTE, Measure
from raylm.results.progress import Progress, StepMetrics
from raylm.results.rows import (
    DIVERGED,
    DONE,
    FAILED,
    INTERRUPTED,
    PENDING,
    QUEUED,
    RUNNING,
    Row,
    SavedCheckpoint,
    SweepRows,
)
from raylm.results.storage import Folder

TRIALS = [TrialConfig(seed=seed, context_length=64) for seed in range(4)]
RUNS = [trial.run_name for trial in TRIALS]


def build_monitor(*statuses: str, retry_failed: bool = False, num_trials: int = 4) -> SweepMonitor:
    rows = [Row(trial, status, "", None, None) for trial, status in zip(TRIALS, statuses, strict=False)]
    results = SweepRows(Folder(Path("/nowhere")), rows)
    return SweepMonitor("s", results, num_trials, lambda trial: 100.0, retry_failed=retry_failed)


def build_step(number: int, tokens_per_second: float = 10.0) -> StepMetrics:
    return StepMetrics(number, 50, 5.0, number * 20, tokens_per_second)


def test_unfinished_trials_of_earlier_launches_are_queued() -> None:
    monitor = build_monitor(DONE, INTERRUPTED, FAILED, PENDING)
    assert monitor.snapshot().counts == {DONE: 1, QUEUED: 2, FAILED: 1}
    assert monitor.snapshot().num_finished == 2
    retrying = build_monitor(DONE, FAILED, retry_failed=True, num_trials=2)
    assert retrying.snapshot().counts == {DONE: 1, QUEUED: 1}


def test_counts_follow_the_events() -> None:
    monitor = build_monitor(*[PENDING] * 4)
    for trial in TRIALS:
        monitor.on_trial_start(trial)
    assert monitor.snapshot().counts == {RUNNING: 4}
    monitor.on_retry(TRIALS[0], "its process died")
    monitor.on_trial_end(TRIALS[1], DEFERRED, "out of memory")
    monitor.on_trial_end(TRIALS[2], PAUSED, "")
    monitor.on_trial_end(TRIALS[3], DIVERGED, "")
    assert monitor.snapshot().counts == {QUEUED: 2, INTERRUPTED: 1, DIVERGED: 1}
    monitor.on_trial_start(TRIALS[0])
    monitor.on_trial_end(TRIALS[0], DONE, "")
    assert monitor.snapshot().counts == {DONE: 1, QUEUED: 1, INTERRUPTED: 1, DIVERGED: 1}


def test_deferred_trial_is_queued_with_its_saved_work_and_runs_again_alone() -> None:
    monitor = build_monitor(PENDING, PENDING, num_trials=2)
    for trial in TRIALS[:2]:
        monitor.on_trial_start(trial)
    monitor.on_step(TRIALS[0], build_step(20))
    monitor.on_evaluate(TRIALS[0], {"step": 25, "adj_val_loss": 9.0})
    monitor.on_step(TRIALS[0], build_step(40))
    assert monitor.snapshot().fraction_done == pytest.approx(40 / 100)
    monitor.on_trial_end(TRIALS[0], DEFERRED, "out of memory")
    monitor.on_trial_end(TRIALS[1], DONE, "")
    assert monitor.snapshot().counts == {DONE: 1, QUEUED: 1}
    assert monitor.snapshot().fraction_done == pytest.approx((25 + 50) / 100)
    monitor.on_trial_start(TRIALS[0])
    assert monitor.snapshot().counts == {DONE: 1, RUNNING: 1}
    monitor.on_step(TRIALS[0], build_step(30))
    assert monitor.snapshot().fraction_done == pytest.approx((30 + 50) / 100)
    assert monitor.snapshot().running[0].curve == ((30, 5.0),)
    monitor.on_trial_end(TRIALS[0], DONE, "")
    assert monitor.snapshot().counts == {DONE: 2} and monitor.snapshot().fraction_done == pytest.approx(1)


def test_failed_attempt_falls_back_to_the_checkpoint_of_an_earlier_launch() -> None:
    checkpoint = SavedCheckpoint("", Progress(50, 8, step=10))
    results = SweepRows(Folder(Path("/nowhere")), [Row(TRIALS[0], INTERRUPTED, "", checkpoint, None)])
    monitor = SweepMonitor("s", results, 1, lambda trial: 1.0)
    monitor.on_trial_start(TRIALS[0])
    monitor.on_step(TRIALS[0], build_step(40))
    monitor.on_retry(TRIALS[0], "its process died")
    assert monitor.snapshot().fraction_done == pytest.approx(10 / 50)


def test_trial_that_a_pause_keeps_from_starting_stays_queued() -> None:
    monitor = build_monitor(PENDING, PENDING, num_trials=2)
    monitor.on_trial_start(TRIALS[0])
    monitor.on_pause("interrupted")
    monitor.on_trial_end(TRIALS[1], PAUSED, "")
    monitor.on_trial_end(TRIALS[0], PAUSED, "")
    assert monitor.snapshot().counts == {QUEUED: 1, INTERRUPTED: 1}
    assert monitor.snapshot().pause_reason == "interrupted"


def test_trial_that_fails_without_having_started_is_counted() -> None:
    monitor = build_monitor(PENDING, num_trials=1)
    monitor.on_trial_end(TRIALS[0], FAILED, "no process")
    assert monitor.snapshot().counts == {FAILED: 1} and monitor.snapshot().num_finished == 1


@pytest.mark.parametrize("status", [DONE, DIVERGED, PAUSED, DEFERRED])
def test_step_after_the_end_of_its_trial_is_dropped(status: str) -> None:
    monitor = build_monitor(PENDING)
    monitor.on_trial_start(TRIALS[0])
    monitor.on_step(TRIALS[0], build_step(10))
    monitor.on_trial_end(TRIALS[0], status, "")
    before = msgspec.structs.replace(monitor.snapshot(), updated_at=0.0)
    monitor.on_step(TRIALS[0], build_step(11))
    assert msgspec.structs.replace(monitor.snapshot(), updated_at=0.0) == before


def test_steps_of_another_thread_never_bring_an_ended_trial_back() -> None:
    monitor = build_monitor(PENDING, num_trials=1)
    stop = threading.Event()

    def send_steps() -> None:
        number = 0
        while not stop.is_set():
            number = number % 50 + 1
            monitor.on_step(TRIALS[0], build_step(number))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=send_steps)
    thread.start()
    try:
        for _ in range(200):
            monitor.on_trial_start(TRIALS[0])
            assert monitor.snapshot().counts == {RUNNING: 1}
            monitor.on_trial_end(TRIALS[0], PAUSED, "")
            state = monitor.snapshot()
            assert (state.counts, state.running) == ({INTERRUPTED: 1}, ())
            assert monitor.snapshot().fraction_done == state.fraction_done
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)


def test_signal_may_pause_while_another_event_is_handled() -> None:
    def estimate_cost(trial: TrialConfig) -> float:  # called while the monitor is locked
        monitor.on_pause("interrupted")
        return 1.0

    monitor = SweepMonitor("s", SweepRows(Folder(Path("/nowhere")), []), 1, estimate_cost)
    monitor.on_trial_start(TRIALS[0])
    assert monitor.snapshot().pause_reason == "interrupted" and monitor.snapshot().counts == {RUNNING: 1}


def test_time_left_follows_from_finished_and_remaining_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("raylm.monitor.state.time.monotonic", lambda: now)
    monitor = build_monitor(DONE, PENDING, PENDING)  # and one that a search has not suggested yet
    monitor.on_trial_start(TRIALS[1])
    monitor.on_step(TRIALS[1], build_step(10))
    assert monitor.snapshot().seconds_left is None, "too early for an estimate"
    now += 10.0
    assert monitor.snapshot().fraction_done == pytest.approx((100 + 20) / 400)
    assert monitor.snapshot().seconds_left == pytest.approx((80 + 100 + 100) / 20 * 10)
    monitor.on_step(TRIALS[1], build_step(10, tokens_per_second=0.1))
    assert monitor.snapshot().running[0].step == build_step(10), "the same step again changes nothing"
    monitor.on_trial_end(TRIALS[1], DIVERGED, "")
    assert monitor.snapshot().fraction_done == pytest.approx(200 / 400), "the rest of a diverged trial is not left"


def test_time_left_is_at_least_that_of_the_slowest_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("raylm.monitor.state.time.monotonic", lambda: now)
    monitor = build_monitor(PENDING, PENDING, num_trials=2)
    for trial, tokens_per_second in zip(TRIALS[:2], (1000.0, 0.1), strict=True):
        monitor.on_trial_start(trial)
        monitor.on_step(trial, build_step(40, tokens_per_second))
    now += 10.0
    assert monitor.snapshot().seconds_left == pytest.approx(10 * 20 / 0.1)


def test_best_trial_has_the_lowest_adj_val_loss_of_its_dataset() -> None:
    monitor = build_monitor(PENDING)
    monitor.on_evaluate(TRIALS[3], {"step": 1, "val_loss": 1.0})  # its adj val loss was not finite
    assert monitor.snapshot().best == {}
    for trial, loss in zip(TRIALS, (9.0, 8.0, 8.5), strict=False):
        monitor.on_evaluate(trial, {"step": 1, "adj_val_loss": loss})
    best = monitor.snapshot().best
    assert {dataset: (trial.run_name, trial.adj_val_loss) for dataset, trial in best.items()} == (
        {"pydocs": (RUNS[1], 8.0)}
    )


def test_best_trial_goes_by_the_measure_of_its_dataset() -> None:
    nano, gpt2, lossy = (TrialConfig(model=model) for model in ("gpt2-nano", "gpt2", "owner/lossy"))
    factors = {nano.corpus_key: 0.5, gpt2.corpus_key: 0.25}
    measure = Measure(NATS_PER_BYTE, "", factors, frozenset([lossy.corpus_key]))
    results = SweepRows(Folder(Path("/nowhere")), [])
    monitor = SweepMonitor("s", results, 3, lambda trial: 1.0, measures={"pydocs": measure})
    for trial, loss in ((nano, 3.0), (gpt2, 4.0), (lossy, 0.1)):
        monitor.on_evaluate(trial, {"step": 1, "val_loss": loss, "adj_val_loss": 2 * loss})
    state = monitor.snapshot()
    assert str(state.best["pydocs"]) == "nats per byte 1.0000" and state.best["pydocs"].run_name == gpt2.run_name
    assert msgspec.convert(msgspec.to_builtins(state), SweepState) == state
    assert any("best on pydocs: nats per byte 1.0000, pydocs-gpt2" in line for line in render_lines(state))


def render_lines(state: SweepState) -> list[str]:
    """Return the lines of a state on a terminal."""
    console = RichConsole(width=200)
    with console.capture() as captured:
        console.print(render_state(state, 200))
    return captured.get().splitlines()


def test_curve_of_a_running_trial_is_thinned_out() -> None:
    monitor = build_monitor(PENDING)
    monitor.on_trial_start(TRIALS[0])
    for number in range(1, 1001):
        monitor.on_step(TRIALS[0], StepMetrics(number, 1000, 5.0, number, 1.0))
    (running,) = monitor.snapshot().running
    steps = [number for number, _ in running.curve]
    assert len(steps) < 2 * CURVE_POINTS and steps == sorted(set(steps)) and steps[0] == 1 and steps[-1] > 900


def test_curve_starts_again_at_a_step_before_the_latest() -> None:
    monitor = build_monitor(PENDING)
    monitor.on_trial_start(TRIALS[0])
    for number in (30, 31, 10, 11):
        monitor.on_step(TRIALS[0], build_step(number))
    assert monitor.snapshot().running[0].step == build_step(11)
    assert [number for number, _ in monitor.snapshot().running[0].curve] == [10, 11]


@pytest.mark.parametrize("loss", [5.0, math.nan, math.inf])
def test_state_survives_json(loss: float) -> None:
    monitor = build_monitor(DONE, PENDING, PENDING)
    monitor.on_trial_start(TRIALS[1])
    monitor.on_trial_start(TRIALS[2])
    monitor.on_step(TRIALS[1], build_step(10))
    monitor.on_step(TRIALS[1], replace(build_step(11), loss=loss))
    monitor.on_evaluate(TRIALS[1], {"step": 10, "adj_val_loss": 9.0})
    state = monitor.snapshot()
    assert msgspec.json.decode(msgspec.json.encode(state), type=SweepState) == state
