"""The view of a sweep in a terminal: its numbers, in no more characters than there are."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from raylm.monitor.progress_view import render_state, shorten_name
from raylm.monitor.state import BestTrial, RunningTrial, SweepState
from raylm.results.progress import StepMetrics
from raylm.results.rows import DONE, FAILED, QUEUED, RUNNING

NAMES = [f"wikitext103-gpt2-medium-{length}x8-lr0.001-e2-671b9abe1e" for length in (64, 128, 1024)]
STEPS = [StepMetrics(4210, 14032, 5.2, 2_000_000, 12345.6), StepMetrics(1, 20, 3.25, 1000, 50.0), None]
STATE = SweepState(
    sweep="imdb-grid",
    total=12,
    counts={DONE: 3, RUNNING: 3, QUEUED: 5, FAILED: 1},
    running=tuple(RunningTrial(name, 0.0, step) for name, step in zip(NAMES, STEPS, strict=True)),
    best={"imdb": BestTrial(NAMES[1], 4.1234)},
    share=0.375,
    seconds_left=5400,
)


def shown(state: SweepState, width: int, most: int = 1000) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, record=True)
    console.print(render_state(state, width, most))
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_everything_fits_and_is_said(width: int) -> None:
    lines = shown(STATE, width)
    assert max(map(len, lines)) <= width and len(lines) == 7
    assert lines[0] == "imdb-grid  3 done  3 running  5 waiting  1 failed"
    assert lines[2].split()[-5:] == ["4,210/14,032", "12,346", "5.200", "6.3", "min"]
    assert lines[3].split()[-5:] == ["1/20", "50", "3.250", "6.3", "min"]
    assert lines[4].endswith("starting")
    assert lines[5].endswith("38 %  4 of 12 trials, 12,396 tokens/s, ~90 min left")
    assert lines[6].startswith("best on imdb: adj val loss 4.123, wikitext103-gpt2-medium-1")
    names = [line.split()[0] for line in lines[2:5]]
    assert len(set(names)) == 3 and all(name.endswith("9abe1e"[-5:]) for name in names)
    assert width == 80 or names == NAMES


def test_where_there_is_no_room_the_rest_is_counted() -> None:
    lines = shown(STATE, 80, most=1)
    assert [bool(re.match("wikitext103", line)) for line in lines] == [False, False, True, False, False, False]
    assert lines[3] == "and 2 more"


def test_a_sweep_at_rest_has_no_trials_to_show() -> None:
    lines = shown(SweepState("s", 2, {DONE: 2}, share=1.0), 80)
    assert lines[0] == "s  2 done" and lines[1].endswith("100 %  2 of 2 trials") and len(lines) == 2


def test_a_shortened_name_keeps_what_it_is_and_its_id() -> None:
    assert shorten_name("pydocs-gpt2-64x8-0669e90250", 80) == "pydocs-gpt2-64x8-0669e90250"
    assert shorten_name("pydocs-gpt2-64x8-0669e90250", 20) == "pydocs-gpt2-64…90250"
