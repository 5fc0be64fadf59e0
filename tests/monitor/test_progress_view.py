"""Progress in a terminal: the live view fits in its width, plain lines come in order and not too often."""

from __future__ import annotations

import io
import re
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from raylm.config.trial import TrialConfig
from raylm.events import DEFERRED, PAUSED
from raylm.monitor import progress_view
from raylm.monitor.live_table import shorten_name
from raylm.monitor.progress_view import LiveView, PlainView, render_state
from raylm.monitor.state import BestTrial, RunningTrial, SweepMonitor, SweepState
from raylm.results.progress import StepMetrics
from raylm.results.rows import DONE, FAILED, PENDING, QUEUED, RUNNING, Row, SweepRows
from raylm.results.storage import Folder

NAMES = [f"wikitext103-gpt2-medium-{length}x8-lr0.001-e2-671b9abe1e" for length in (64, 128, 1024)]
STEPS = [StepMetrics(4210, 14032, 5.2, 2_000_000, 12345.6), StepMetrics(1, 20, 3.25, 1000, 50.0), None]
STATE = SweepState(
    sweep="imdb-grid",
    total=12,
    counts={DONE: 3, RUNNING: 3, QUEUED: 5, FAILED: 1},
    running=tuple(RunningTrial(name, 0.0, step) for name, step in zip(NAMES, STEPS, strict=True)),
    best={"imdb": BestTrial(NAMES[1], 4.1234)},
    fraction_done=0.375,
    seconds_left=5400,
)
TRIAL = TrialConfig(context_length=64)
RUN = TRIAL.run_name
LOSSES = {"epoch": 1, "step": 20, "train_loss": 3.0, "val_loss": 2.5, "adj_val_loss": 4.0}


def render_lines(state: SweepState, width: int, max_lines: int = 1000) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, record=True)
    console.print(render_state(state, width, max_lines))
    return [line.rstrip() for line in console.export_text().splitlines()]


def build_monitor() -> SweepMonitor:
    results = SweepRows(Folder(Path("/nowhere")), [Row(TRIAL, PENDING, "", None, None)])
    return SweepMonitor("s", results, 1, lambda trial: 1.0)


def build_step(number: int) -> StepMetrics:
    return StepMetrics(number, 100, 5.0, number * 20, 10.0)


@pytest.mark.parametrize("width", [80, 120, 200])
def test_view_fits_in_the_terminal(width: int) -> None:
    lines = render_lines(STATE, width)
    assert max(map(len, lines)) <= width and len(lines) == 7
    assert lines[0] == f"imdb-grid  3 done  3 running  5 {QUEUED}  1 failed"
    assert lines[2].split()[-5:] == ["4,210/14,032", "12,346", "5.200", "6.3", "min"]
    assert lines[3].split()[-5:] == ["1/20", "50", "3.250", "6.3", "min"]
    assert lines[4].endswith("starting")
    assert lines[5].endswith("38 %  4 of 12 trials, 12,396 tokens/s, ~90 min left")
    assert lines[6].startswith("best on imdb: adj val loss 4.123, wikitext103-gpt2-medium-1")
    names = [line.split()[0] for line in lines[2:5]]
    assert len(set(names)) == 3 and all(name.endswith("9abe1e"[-5:]) for name in names)
    assert width == 80 or names == NAMES


def test_running_trials_that_do_not_fit_are_counted() -> None:
    lines = render_lines(STATE, 80, max_lines=1)
    assert [bool(re.match("wikitext103", line)) for line in lines] == [False, False, True, False, False, False]
    assert lines[3] == "and 2 more"


def test_view_of_an_idle_sweep_has_no_running_trials() -> None:
    lines = render_lines(SweepState("s", 2, {DONE: 2}, fraction_done=1.0), 80)
    assert lines[0] == "s  2 done" and lines[1].endswith("100 %  2 of 2 trials") and len(lines) == 2


def test_shortened_name_keeps_its_beginning_and_its_id() -> None:
    assert shorten_name("pydocs-gpt2-64x8-0669e90250", 80) == "pydocs-gpt2-64x8-0669e90250"
    assert shorten_name("pydocs-gpt2-64x8-0669e90250", 20) == "pydocs-gpt2-64…90250"


def test_plain_view_prints_a_line_for_each_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_view, "STEP_LINE_SECONDS", -1.0)
    lines: list[str] = []
    view = PlainView(lines.append, build_monitor())
    view.on_trial_start(TRIAL)
    for number in (10, 10, 20):
        view.on_step(TRIAL, build_step(number))
    view.on_evaluate(TRIAL, LOSSES)
    view.on_evaluate(TRIAL, {**LOSSES, "epochs_seen": 1 / 9})
    view.on_step(TRIAL, build_step(20))
    view.on_retry(TRIAL, "its process died")
    view.on_step(TRIAL, build_step(30))
    view.on_trial_start(TRIAL)
    view.on_pause("interrupted")
    view.on_trial_end(TRIAL, FAILED, "ValueError: no")
    assert lines == [
        f"{RUN}  started",
        f"{RUN}  step 10 of 100, train loss 5.000, 10 tokens/s, ~3.0 min left",
        f"{RUN}  step 20 of 100, train loss 5.000, 10 tokens/s, ~2.7 min left",
        f"{RUN}  epoch 1: train loss 3.000, val loss 2.500, adj val loss 4.000",
        f"{RUN}  epoch 0.11: train loss 3.000, val loss 2.500, adj val loss 4.000",
        f"{RUN}  starts again from its latest checkpoint: its process died",
        f"{RUN}  started",
        "interrupted: running trials save a checkpoint, which takes up to 25 s; press Ctrl-C again to exit at once",
        f"{RUN}  failed: ValueError: no (0 of 1)",
    ]


def test_plain_view_prints_steps_of_a_run_only_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("raylm.monitor.progress_view.time.monotonic", lambda: now)
    lines: list[str] = []
    view = PlainView(lines.append, build_monitor())
    view.on_trial_start(TRIAL)
    view.on_step(TRIAL, build_step(1))
    now += progress_view.STEP_LINE_SECONDS + 1
    view.on_step(TRIAL, build_step(2))
    view.on_step(TRIAL, build_step(3))
    assert [line.split("  ")[1].split(",")[0] for line in lines] == ["started", "step 2 of 100"]


@pytest.mark.parametrize("status", [DONE, FAILED, PAUSED, DEFERRED])
def test_plain_view_drops_a_step_after_the_end_of_its_trial(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_view, "STEP_LINE_SECONDS", -1.0)
    lines: list[str] = []
    view = PlainView(lines.append, build_monitor())
    view.on_trial_start(TRIAL)
    view.on_trial_end(TRIAL, status, "")
    view.on_step(TRIAL, build_step(50))
    assert [line.split("  ")[1] for line in lines] == ["started", f"{status} (0 of 1)"]


def test_no_step_of_another_thread_is_printed_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_view, "STEP_LINE_SECONDS", -1.0)
    lines: list[str] = []
    view = PlainView(lines.append, build_monitor())
    stop = threading.Event()

    def send_steps() -> None:
        number = 0
        while not stop.is_set():
            number = number % 99 + 1
            view.on_step(TRIAL, build_step(number))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=send_steps)
    thread.start()
    try:
        for _ in range(100):
            view.on_trial_start(TRIAL)
            view.on_trial_end(TRIAL, DONE, "")
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    is_running = False
    for line in lines:
        if " step " in line:
            assert is_running, "a step follows the end of its trial"
        else:
            is_running = line.endswith("started")


def test_live_view_prints_events_above_the_bars() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None, record=True)
    monitor = build_monitor()
    with LiveView(console, monitor) as view:
        for listener in (monitor, view):
            listener.on_trial_start(TRIAL)
            listener.on_evaluate(TRIAL, LOSSES)
            listener.on_trial_end(TRIAL, DONE, "")
            listener.on_trial_end(TRIAL, FAILED, "ValueError: [no]")
    text = console.export_text()
    assert f"{RUN}  epoch 1: train loss 3.000, val loss 2.500, adj val loss 4.000\n" in text
    assert f"{RUN}  failed: ValueError: [no]\n" in text and f"{RUN}  done" not in text
    assert f"{RUN}  started" not in text, "the bars show what is running"
