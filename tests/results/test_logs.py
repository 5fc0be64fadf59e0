"""What trials print is in their folders, whoever prints it, and is found again by a run's name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results import logs
from raylm.results.rows import DONE, Results, Row
from raylm.results.storage import Folder
from raylm.tuning import trial_process

PRINTING = """
import os, subprocess, sys
from pathlib import Path
from raylm import logs
from raylm.storage import Folder
print("before")
for attempt in range(2):
    with logs.kept(Folder(Path({folder!r})), "launch-001/run/log.txt"):
        print("by Python", attempt)
        print("a warning", file=sys.stderr)
        os.write(2, b"by C\\n")
        subprocess.run(["echo", "by a child"], check=True)
        logs.say("two\\nlines")
        if attempt == 1:
            sys.stderr.write("cut off")
            sys.stderr.flush()
            {end}
print("after")
"""


@pytest.mark.parametrize(("end", "printed_after"), [("pass", "after\n"), ("os.kill(os.getpid(), 9)", "")])
def test_all_that_a_process_prints_is_kept_though_it_is_killed(tmp_path: Path, end: str, printed_after: str) -> None:
    code = PRINTING.format(folder=str(tmp_path), end=end)
    done = subprocess.run([sys.executable, "-u", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    told = f"raylm: what follows here is in {tmp_path}/launch-001/run/log.txt\n"
    assert done.stdout == "before\n" + 2 * told + printed_after and done.stderr == ""
    first, second = (tmp_path / "launch-001" / "run" / "log.txt").read_text().split("by Python 1\n")
    assert first.startswith("by Python 0\na warning\nby C\nby a child\n[") and first.endswith("] two\\nlines\n")
    assert second.endswith("] two\\nlines\ncut off")


def test_a_log_that_cannot_be_opened_costs_no_trial(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "launch-001").write_text("no folder")
    with trial_process.capture_output(Folder(tmp_path), "launch-001/run/log.txt"):
        print("printed as before")
    assert "printed as before" in capfd.readouterr().out


TRIALS = [TrialConfig(context_length=length) for length in (64, 128)]


@pytest.fixture
def found(tmp_path: Path) -> Results:
    return Results(Folder(tmp_path), [Row(trial, DONE, "", None, None) for trial in TRIALS])


def test_a_run_is_found_by_its_name_how_that_begins_and_its_id(found: Results) -> None:
    first, second = found.rows
    assert logs.match_row(found, first.config.run_name) is first
    assert logs.match_row(found, "pydocs-gpt2-nano-128") is second
    assert logs.match_row(found, second.config.id) is second


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("pydocs", f"2 runs begin with pydocs: {TRIALS[0].run_name}, {TRIALS[1].run_name}"),
        ("pidocs" + TRIALS[0].run_name[6:], f"did you mean '{TRIALS[0].run_name}'?"),
        ("x", f"expected one of {TRIALS[0].run_name}, {TRIALS[1].run_name}"),
    ],
)
def test_of_a_run_that_is_not_known_near_ones_are_named(found: Results, asked: str, said: str) -> None:
    with pytest.raises(UserError, match="run") as raised:
        logs.match_row(found, asked)
    assert said in str(raised.value)


def test_the_logs_of_all_launches_and_ranks_are_shown(found: Results) -> None:
    run = TRIALS[0].run_name
    for name in (f"launch-010/{run}/log.txt", f"launch-002/{run}/log-1.txt", f"launch-002/{run}/log.txt"):
        found.storage.write(name, f"text of {name}")
    found.storage.write(f"launch-002/{run}/progress.csv", "")
    shown = list(logs.read_logs(found, found.rows[0]))
    assert [name.removeprefix("launch-0") for name, _ in shown] == [
        f"02/{run}/log-1.txt", f"02/{run}/log.txt", f"10/{run}/log.txt"
    ]  # fmt: skip
    assert all(text == f"text of {name}" for name, text in shown)
