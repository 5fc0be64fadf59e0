"""The first processes that Ray starts import what trials need: as many as there are claims, no others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from raylm.config.trial import Resources
from raylm.tuning.connection import preload
from raylm.tuning.connection.worker_start import CLAIMS_VARIABLE, take_claim
from raylm.tuning.ray_private import PRELOAD_VARIABLE


def test_each_claim_is_taken_once() -> None:
    with preload.open_claims(2) as claims:
        assert claims is not None
        assert [take_claim(claims) for _ in range(3)] == [True, True, False]
    assert not take_claim(claims)  # by a process that starts after Ray has stopped


def test_trials_wait_a_limited_time_for_processes_that_take_no_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preload, "CLAIM_SECONDS", 0.0)
    with preload.open_claims(1) as claims:
        preload.wait_for_processes(claims)
        assert claims is not None and take_claim(claims)
    preload.wait_for_processes(None)


def test_processes_find_the_claims_while_ray_starts() -> None:
    with preload.open_claims(1) as claims, preload.preload_trial_modules(claims):
        assert (os.environ[CLAIMS_VARIABLE], os.environ[PRELOAD_VARIABLE]) == (str(claims), preload.START_MODULE)
    assert CLAIMS_VARIABLE not in os.environ and PRELOAD_VARIABLE not in os.environ


def test_nothing_is_imported_early_from_another_copy_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raylm").mkdir()
    (tmp_path / "raylm" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path[1:]])
    with preload.open_claims(1) as claims, preload.preload_trial_modules(claims):
        assert claims is None and PRELOAD_VARIABLE not in os.environ


@pytest.mark.parametrize(
    ("resources", "num_trials", "max_concurrent", "number"),
    [
        (Resources(gpus=0, cpus=1), 100, None, 8),
        (Resources(gpus=0, cpus=2), 100, None, 4),
        (Resources(gpus=0, cpus=3), 100, None, 0),  # Ray has six other processes for the two trials
        (Resources(gpus=0, cpus=1), 5, None, 5),
        (Resources(gpus=0, cpus=1), 100, 4, 4),
        (Resources(gpus=0, cpus=1), 100, 1, 0),
        (Resources(gpus=1, cpus=1), 100, None, 0),  # CUDA has not been told its GPU
        (Resources(), 100, None, 0),
    ],
)
def test_as_many_processes_as_trials_start_together(
    resources: Resources, num_trials: int, max_concurrent: int | None, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preload, "allowed_cpus", lambda: 8)
    assert preload.count_first_trials(resources, num_trials, max_concurrent) == number
