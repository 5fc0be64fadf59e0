"""Console output: tables, plans and samples on terminals and in files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from raylm.config.trial import TrialConfig
from raylm.events import TrialListener
from raylm.monitor.console import PLAIN_WIDTH, Console
from raylm.monitor.progress_view import LiveView, PlainView
from raylm.monitor.state import SweepMonitor
from raylm.planning.plan import plan_trial
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DONE, FAILED, PENDING, Row, SavedCheckpoint, SweepRows
from raylm.results.storage import Folder

TRIALS = [
    TrialConfig.from_record({"dataset": "imdb", "model": model, "context_length": 64}) for model in ("gpt2", "[b]odd")
]


def build_results() -> SweepRows:
    progress = Progress(10, 8, step=10, evaluations=[EvalMetrics(1, 10, 5120, 3.25, 3.5, 4.75)])
    saved = SavedCheckpoint("", progress)
    rows = [Row(TRIALS[0], DONE, "", saved, saved), Row(TRIALS[1], FAILED, "ValueError: [no]", None, None)]
    return SweepRows(Folder(Path("/nowhere")), rows)


def build_console(width: int | None = None, *, quiet: bool = False) -> tuple[Console, io.StringIO]:
    """Return a console of a terminal with a width, or of a file."""
    file = io.StringIO()
    options = {"highlight": False, "soft_wrap": True, "color_system": None}
    rich_console = RichConsole(file=file, width=width or 80, force_terminal=width is not None, **options)  # type: ignore[arg-type]
    return Console(quiet=quiet, rich_console=rich_console), file


def test_table_in_a_file_is_never_truncated() -> None:
    console, file = build_console()
    console.print_table(build_results())
    heading, *lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert heading.split()[:3] == ["dataset", "context", "len"] and console.rich_console.width == PLAIN_WIDTH
    assert lines[0].endswith(f"{TRIALS[0].run_name} (best)") and " 3.25 " in lines[0] and " 4.75 " in lines[0]
    assert "[b]odd" in lines[1] and lines[1].endswith(f"{TRIALS[1].run_name} (failed)")
    assert lines[2] == f"{TRIALS[1].run_name} failed: ValueError: [no]"


def test_table_on_a_narrow_terminal_has_headings_on_two_lines() -> None:
    console, file = build_console(110)
    console.print_table(build_results())
    first, second, *lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert first.split()[:2] == ["context", "batch"] and second.split()[:3] == ["dataset", "len", "model"]
    assert lines[0].endswith(f"  {TRIALS[0].run_name} (best)") and " 3.25 " in lines[0] and " 4.75 " in lines[0]
    assert lines[1].endswith(f"  {TRIALS[1].run_name} (failed)") and max(map(len, lines[:2])) <= 110


@pytest.mark.parametrize("width", [60, 80])
def test_table_on_a_narrower_terminal_has_run_names_below_their_numbers(width: int) -> None:
    console, file = build_console(width)
    console.print_table(build_results())
    _, _, numbers, name, _, failed, *notes = file.getvalue().splitlines()
    assert numbers.split() == ["imdb", "64", "gpt2", "8", "3.25", "3.50", "4.75", "1"]
    assert (name, failed) == (f"  {TRIALS[0].run_name} (best)", f"  {TRIALS[1].run_name} (failed)")
    assert notes == [f"{TRIALS[1].run_name} failed: ValueError: [no]"]


def test_quiet_console_prints_the_table_without_notes(capsys: pytest.CaptureFixture[str]) -> None:
    console, file = build_console(quiet=True)
    console.print_note("a note")
    with console.show_spinner("loading"):
        pass
    console.print_table(build_results())
    assert "note" not in file.getvalue() and "loading" not in file.getvalue() and "failed: " not in file.getvalue()
    assert TRIALS[0].run_name in file.getvalue()
    console.print_error("no [model]")
    assert capsys.readouterr().err == "raylm: no [model]\n"


def test_plan_has_a_line_per_trial_with_its_status() -> None:
    console, file = build_console()
    results = SweepRows(Folder(Path("/nowhere")), [Row(trial, PENDING, "", None, None) for trial in TRIALS])
    results.rows[1] = build_results().rows[1]
    console.print_plan(results, [plan_trial(TRIALS[0], 1_000_000), None], ["a note"])
    heading, first, second, note = [line.rstrip() for line in file.getvalue().splitlines()]
    assert heading.split()[:2] == ["model", "params"] and first.split()[:3] == ["gpt2", "124M", "1M"]
    assert first.endswith(TRIALS[0].run_name)
    assert second.split()[:9] == ["[b]odd", *8 * ["?"]] and second.endswith("(failed)") and note == "a note"


@pytest.mark.parametrize(("width", "num_lines"), [(120, 2), (60, 6)])
def test_samples_stand_side_by_side_if_the_terminal_is_wide(width: int, num_lines: int) -> None:
    console, file = build_console(width)
    console.print_samples(["before", "after"], ["one\x07 [b]", "two"])
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert len(lines) == num_lines and "one" in lines[1] and "[b]" in lines[1] and "\x07" not in file.getvalue()
    assert ("two" in lines[1]) is (num_lines == 2)


def test_samples_in_a_file_are_printed_as_they_come() -> None:
    console, file = build_console()

    def texts() -> Iterator[str]:
        yield "one"
        assert file.getvalue() == "before\none\n\n"
        yield "two"

    console.print_samples(["before", "after"], texts())
    assert file.getvalue() == "before\none\n\nafter\ntwo\n\n"


@pytest.mark.parametrize(
    ("width", "quiet", "view_class"), [(100, False, LiveView), (100, True, PlainView), (None, False, PlainView)]
)
def test_progress_is_drawn_on_a_terminal_only(width: int | None, quiet: bool, view_class: type[TrialListener]) -> None:
    console, file = build_console(width, quiet=quiet)
    monitor = SweepMonitor("s", build_results(), 2, lambda trial: 1.0)
    with console.show_progress(monitor) as view:
        assert type(view) is view_class
        view.on_retry(TRIALS[0], "its process died")
    assert ("its process died" in file.getvalue()) is not quiet
