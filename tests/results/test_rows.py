"""Best row, and rows by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import TRIAL, save_checkpoint

from raylm.config.trial import TrialConfig
from raylm.errors import UserError
from raylm.results.folder import (
    load_rows,
    write_final_status,
)
from raylm.results.rows import DIVERGED, DONE, INTERRUPTED, PENDING, STOPPED
from raylm.results.storage import Folder

OTHER = TrialConfig(seed=2)


def test_best_row_is_done(tmp_path: Path) -> None:
    trials = [TrialConfig(seed=seed) for seed in range(5)]
    save_checkpoint(tmp_path, "launch-001/0", 1.0, num_epochs=2, trial=trials[0])
    write_final_status(Folder(tmp_path), "launch-001", trials[0], DIVERGED, "a loss is not finite")
    save_checkpoint(tmp_path, "launch-001/0", 1.5, num_epochs=2, trial=trials[1])
    save_checkpoint(tmp_path, "launch-001/0", 3.0, num_epochs=1, trial=trials[2])
    save_checkpoint(tmp_path, "launch-001/0", 1.2, num_epochs=2, trial=trials[4])
    write_final_status(Folder(tmp_path), "launch-001", trials[4], STOPPED, "it is not among the best third")
    none = load_rows(Folder(tmp_path), [*trials[:2], trials[4]])
    assert none.best_by_dataset == {}
    with pytest.raises(UserError, match="no finished row yet"):
        none.best()
    save_checkpoint(tmp_path, "launch-001/0", 2.0, num_epochs=1, trial=trials[3])
    results = load_rows(Folder(tmp_path), trials)
    assert results.best_by_dataset == {TRIAL.dataset: results.rows[3]}
    assert results.best() is results.best(TRIAL.dataset) is results.rows[3]
    counts = [results.count(DONE), results.count(DIVERGED, INTERRUPTED), results.count(STOPPED), results.count(PENDING)]
    assert counts == [2, 2, 1, 0]


def test_best_row_of_several_datasets_needs_a_dataset(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, "launch-001/0", 3.0, num_epochs=1)
    results = load_rows(Folder(tmp_path), [TRIAL, TrialConfig(dataset="imdb")])
    assert results.best(TRIAL.dataset) is results.rows[0]
    cases = [
        (None, "name one: pydocs, imdb"),
        ("imbd", "'imbd'; expected pydocs or imdb"),
        ("imdb", "finished row of imdb"),
    ]
    for dataset, message in cases:
        with pytest.raises(UserError, match=message):
            results.best(dataset)


def test_row_is_found_by_run_name(tmp_path: Path) -> None:
    results = load_rows(Folder(tmp_path), [TRIAL, OTHER])
    assert results.get_row(OTHER.run_name) is results.rows[1]
    with pytest.raises(UserError, match=f"did you mean '{TRIAL.run_name}'"):
        results.get_row(TRIAL.run_name[:-1])
