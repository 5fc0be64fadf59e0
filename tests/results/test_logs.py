"""Logs of trials: everything that their processes print, found by run name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results.logs import match_row, read_logs
from raylm.results.rows import DONE, Row, SweepRows
from raylm.results.storage import Folder
from raylm.tuning import trial_process

PROGRAM = Path(__file__).parents[1] / "programs" / "print_in_trial.py"
TRIALS = [TrialConfig(context_length=length) for length in (64, 128)]


# ---- writing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "printed_after"), [("return", "after\n"), ("kill", "")])
def test_log_has_everything_a_process_prints_even_if_it_is_killed(tmp_path: Path, end: str, printed_after: str) -> None:
    command = [sys.executable, "-u", str(PROGRAM), str(tmp_path), end]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    before, *notes, after = done.stdout.splitlines(keepends=True) if printed_after else [*done.stdout.splitlines(), ""]
    assert before.strip() == "before" and after == printed_after and done.stderr == ""
    assert len(notes) == 2 and all(f"{tmp_path}/launch-001/run/log.txt" in note for note in notes)
    first, second = (tmp_path / "launch-001" / "run" / "log.txt").read_text().split("from Python 1\n")
    assert re.fullmatch(r"from Python 0\na warning\nfrom C\nfrom a child\n\[.*\] two\\nlines\n", first)
    assert second.endswith("] two\\nlines\nincomplete line")


def test_log_that_cannot_be_opened_does_not_fail_the_trial(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "launch-001").write_text("not a folder")
    with trial_process.capture_output(Folder(tmp_path), "launch-001/run/log.txt"):
        print("printed as before")
    assert "printed as before" in capfd.readouterr().out


# ---- reading ------------------------------------------------------------------------------------------------------


@pytest.fixture
def results(tmp_path: Path) -> SweepRows:
    return SweepRows(Folder(tmp_path), [Row(trial, DONE, "", None, None) for trial in TRIALS])


def test_row_is_found_by_name_prefix_and_id(results: SweepRows) -> None:
    first, second = results.rows
    assert match_row(results, first.config.run_name) is first
    assert match_row(results, "pydocs-gpt2-nano-128") is second
    assert match_row(results, second.config.id) is second


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("pydocs", f"2 runs begin with pydocs: {TRIALS[0].run_name}, {TRIALS[1].run_name}"),
        ("pidocs" + TRIALS[0].run_name[6:], f"did you mean '{TRIALS[0].run_name}'?"),
        ("x", f"expected one of {TRIALS[0].run_name}, {TRIALS[1].run_name}"),
    ],
)
def test_unknown_run_is_an_error_with_similar_names(results: SweepRows, query: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        match_row(results, query)


def test_logs_of_all_launches_and_ranks_are_read_in_order(results: SweepRows) -> None:
    run = TRIALS[0].run_name
    names = [f"launch-002/{run}/log-1.txt", f"launch-002/{run}/log.txt", f"launch-010/{run}/log.txt"]
    for name in reversed(names):
        results.storage.write(name, f"text of {name}")
    results.storage.write(f"launch-002/{run}/progress.csv", "")
    assert list(read_logs(results, results.rows[0])) == [(name, f"text of {name}") for name in names]
