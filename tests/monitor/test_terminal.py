"""Output on virtual terminals of any width: real tables, plans, status and bars, with every number whole."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path

import pyte
import pytest
from rich.console import Console as RichConsole

from raylm import Resources, TrialConfig, load_results
from raylm.config.sweep_file import load_sweep
from raylm.monitor.console import Console
from raylm.monitor.progress_view import LiveView
from raylm.monitor.state import SweepMonitor
from raylm.planning import throughput
from raylm.planning.plan import plan_trials
from raylm.report.reference import load_reference
from raylm.results.folder import find_results
from raylm.results.progress import StepMetrics
from raylm.results.rows import PENDING, Row, SweepRows
from raylm.results.storage import Folder

ROOT = Path(__file__).resolve().parents[2]
OLD_RESULTS = ROOT / "tests" / "data" / "old_results"
WIDTHS = (60, 80, 100, 140, 200)
GRID = itertools.product((1e-4, 3.2e-4), (None, 0.1), ("adafactor", "adamw"), (64, 1024))
SEARCHED = [
    TrialConfig(learning_rate=rate, dropout=dropout, optimizer=optimizer, context_length=length, epochs=2)
    for rate, dropout, optimizer, length in GRID
]
STEPS = [StepMetrics(4210, 14032, 5.2, 2_000_000, 12345.6), StepMetrics(1, 20, 3.25, 1000, 50.0), None]


class Terminal:
    """A virtual terminal, and a console that writes to it."""

    def __init__(self, width: int) -> None:
        self._screen = pyte.Screen(width, 100)
        self._file = io.StringIO()
        rich_console = RichConsole(file=self._file, width=width, height=30, force_terminal=True, soft_wrap=True)
        self.console = Console(rich_console=rich_console)

    def read(self) -> list[str]:
        """Return the lines that a person sees."""
        pyte.Stream(self._screen).feed(self._file.getvalue().replace("\n", "\r\n"))
        return [line.rstrip() for line in self._screen.display if line.strip()]


def numbers_of(lines: list[str]) -> set[str]:
    """Return the words with digits, apart from run names."""
    words = [word.strip(",()") for line in lines for word in line.split()]
    return {word for word in words if re.fullmatch(r"[~±+-]?[\d.,/e-]*\d[a-zA-Z]*", word)}


def pending(trials: list[TrialConfig]) -> SweepRows:
    return SweepRows(Folder(Path("/nowhere")), [Row(trial, PENDING, "", None, None) for trial in trials])


def print_table(console: Console) -> None:
    console.print_table(load_results(OLD_RESULTS), load_reference())


def print_plan(console: Console) -> None:
    sweep = load_sweep(ROOT / "sweeps" / "quickstart.py")
    results = find_results(sweep, Folder(Path("/nowhere")))
    placement = throughput.find_placement(Resources(), "auto", "rtx-4090")
    console.print_plan(results, plan_trials([row.config for row in results.rows], placement), [])


def monitor(trials: list[TrialConfig]) -> SweepMonitor:
    sweep_monitor = SweepMonitor("a-search", pending(trials), len(trials), lambda trial: 1.0)
    for trial, step in zip(trials, STEPS, strict=False):
        sweep_monitor.on_trial_start(trial)
        if step is not None:
            sweep_monitor.on_step(trial, step)
    return sweep_monitor


def print_status(console: Console) -> None:
    console.print_status(monitor(SEARCHED).snapshot(), [])


def draw_bars(console: Console) -> None:
    view = LiveView(console.rich_console, monitor(load_sweep(ROOT / "sweeps" / "quickstart.py").trials()))
    console.rich_console.print(view._render())


@pytest.mark.parametrize("show", [print_table, print_plan, print_status, draw_bars])
def test_every_number_is_whole_on_a_terminal_of_any_width(show: object) -> None:
    assert callable(show)
    wide = Terminal(300)
    show(wide.console)
    expected = numbers_of(wide.read())
    assert len(expected) >= 10
    for width in WIDTHS:
        terminal = Terminal(width)
        show(terminal.console)
        lines = terminal.read()
        assert expected <= numbers_of(lines), (width, expected - numbers_of(lines), lines)
        assert not any(re.search(r"\d…|…[\d.]+ ", line) for line in lines if "gpt2" not in line), lines


@pytest.mark.parametrize("width", WIDTHS)
def test_swept_fields_tell_running_trials_apart(width: int) -> None:
    terminal = Terminal(width)
    print_status(terminal.console)
    text = " ".join(" ".join(terminal.read()).split())
    for word in ("learning", "dropout", "optimizer", "context", "adamw", "default", "0.0001", "1024"):
        assert word in text, text
