"""What Tune is told and tells: trials in order, the reason of a failure in a line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError
from ray.tune.search import Searcher

from raylm import TrialConfig
from raylm.tuner import PlannedTrials, _reason


def test_trials_are_handed_out_in_order_until_there_are_none() -> None:
    trials = [TrialConfig(seed=seed) for seed in (3, 1, 2)]
    planned = PlannedTrials(trials)
    assert [planned.suggest(str(number)) for number in range(3)] == [trial.as_dict() for trial in trials]
    assert planned.suggest("3") == Searcher.FINISHED


RAISED = """\
ray::ImplicitFunc.train() (pid=1, ip=10.0.0.1, actor_id=ab, repr=train_gpt2)
  File "x.py", line 2, in train
Traceback (most recent call last):
  File "y.py", line 1, in f
ValueError: not enough of it
"""


@pytest.mark.parametrize(
    ("noted", "reason"),
    [
        ([RAISED], "ValueError: not enough of it"),
        ([RAISED, str(ActorDiedError())], "The actor died unexpectedly before finishing this task."),
        ([str(ActorDiedError()), RAISED], "ValueError: not enough of it"),
        ([], "for a reason that Ray does not tell"),
    ],
)
def test_the_reason_of_the_last_failure_is_told_in_a_line(tmp_path: Path, noted: list[str], reason: str) -> None:
    file = tmp_path / "error.txt"
    if noted:  # as Tune writes it
        file.write_text("".join(f"Failure # {n + 1} (occurred at x)\n{text}\n" for n, text in enumerate(noted)))
    assert _reason(cast(Any, SimpleNamespace(error_file=str(file)))) == reason
