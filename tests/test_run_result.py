"""How a command ended, as an exit code: 0, 1 or 130."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated import build_row

from raylm import TrialConfig
from raylm.errors import PauseReason
from raylm.report.analysis import Results
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, PENDING, STOPPED
from raylm.results.storage import Folder
from raylm.runner import RunResult


@pytest.mark.parametrize(
    ("statuses", "paused", "code"),
    [
        ([DONE, DONE], None, 0),
        ([DONE, STOPPED, DIVERGED], None, 0),
        ([DONE, FAILED], None, 1),
        ([DIVERGED, DIVERGED], None, 1),
        ([DONE, INTERRUPTED, PENDING], PauseReason.INTERRUPTED, 130),
        ([FAILED, INTERRUPTED], PauseReason.INTERRUPTED, 130),
        ([DONE, INTERRUPTED], PauseReason.DISK_FULL, 1),
        ([DONE, INTERRUPTED], PauseReason.FILE_LIMIT, 1),
        ([DONE, INTERRUPTED], PauseReason.BUDGET_USED, 0),
        ([INTERRUPTED, PENDING], PauseReason.BUDGET_USED, 0),
        ([FAILED, INTERRUPTED], PauseReason.BUDGET_USED, 1),
    ],
)
def test_a_command_ends_with(statuses: list[str], paused: PauseReason | None, code: int) -> None:
    rows = [build_row(TrialConfig(seed=seed), status) for seed, status in enumerate(statuses)]
    assert RunResult(Results(Folder(Path()), rows), paused).exit_code == code


def test_a_command_that_could_not_write_its_results_files_has_failed() -> None:
    results = Results(Folder(Path()), [build_row(TrialConfig(), DONE)])
    assert RunResult(results, None, ("report.html is not up to date: Permission denied",)).exit_code == 1
