"""How a command ended, as an exit code: 0, 1 or 130."""

from __future__ import annotations

from pathlib import Path

import pytest
from simulated import row_of

from raylm import TrialConfig
from raylm.errors import Pause
from raylm.report.analysis import SweepResults
from raylm.results.rows import DIVERGED, DONE, FAILED, INTERRUPTED, MISSING, STOPPED
from raylm.results.storage import Folder
from raylm.runner import Outcome


@pytest.mark.parametrize(
    ("statuses", "paused", "code"),
    [
        ([DONE, DONE], None, 0),
        ([DONE, STOPPED, DIVERGED], None, 0),
        ([DONE, FAILED], None, 1),
        ([DIVERGED, DIVERGED], None, 1),
        ([DONE, INTERRUPTED, MISSING], Pause.INTERRUPTED, 130),
        ([FAILED, INTERRUPTED], Pause.INTERRUPTED, 130),
        ([DONE, INTERRUPTED], Pause.DISK_FULL, 1),
        ([DONE, INTERRUPTED], Pause.BUDGET_USED, 0),
        ([INTERRUPTED, MISSING], Pause.BUDGET_USED, 0),
        ([FAILED, INTERRUPTED], Pause.BUDGET_USED, 1),
    ],
)
def test_a_command_ends_with(statuses: list[str], paused: Pause | None, code: int) -> None:
    rows = [row_of(TrialConfig(seed=seed), status) for seed, status in enumerate(statuses)]
    assert Outcome(SweepResults(Folder(Path()), rows), paused).exit_code == code
