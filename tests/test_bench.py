"""Benchmarks read the times of trials from the plain output of a sweep."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console as RichConsole

from raylm.config.trial import TrialConfig
from raylm.monitor.console import Console
from raylm.monitor.state import SweepMonitor
from raylm.results.rows import DONE, FAILED, PENDING, Row, SweepRows
from raylm.results.storage import Folder

FILE = Path(__file__).resolve().parents[1] / "bench" / "watched.py"
TRIALS = {trial.run_name: trial for trial in (TrialConfig(seed=seed) for seed in range(2))}


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("watched", FILE)
    assert spec is not None and spec.loader is not None
    module = ModuleType("watched")
    monkeypatch.setitem(sys.modules, "watched", module)  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def printed(last: str) -> str:
    """Return the output of a launch of two trials, the second of which ends with a status."""
    rows = [Row(trial, PENDING, "", None, None) for trial in TRIALS.values()]
    watch = SweepMonitor("s", SweepRows(Folder(Path("/nowhere")), rows), 2, lambda trial: 1.0)
    out = io.StringIO()
    with Console(rich_console=RichConsole(file=out, highlight=False, soft_wrap=True)).show_progress(watch) as live:
        for trial, status in zip(TRIALS.values(), (DONE, last), strict=True):
            for listener in (watch, live):
                listener.on_trial_start(trial)
            for listener in (watch, live):
                listener.on_trial_end(trial, status, "")
    return out.getvalue()


def test_times_of_trials_are_read_from_the_output(watched: Any) -> None:
    timing = watched.time_sweep([sys.executable, "-c", f"print({printed(DONE)!r})"], num_trials=2)
    assert len(timing.started) == len(timing.done) == 2
    assert 0 < timing.started[0] <= timing.done[-1] <= timing.total_seconds


def test_incomplete_sweep_is_an_error(watched: Any) -> None:
    with pytest.raises(SystemExit, match="1 of 2 trials done"):
        watched.time_sweep([sys.executable, "-c", f"print({printed(FAILED)!r})"], num_trials=2)
