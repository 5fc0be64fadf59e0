"""The packaged sweep files have the rows they promise, in the order of the reference table."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylm.config.sweep_file import load_sweep
from raylm.report.reference import load_reference

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"

TRIALS = {
    "imdb_grid.py": 8,
    "quickstart.py": 6,
    "reference_table.py": 21,
    "wikitext103_grid.py": 12,
    "wikitext2_grid.py": 13,
}

REFERENCE_ROWS = [
    ("wikitext2", 256, "gpt2", 8),
    ("wikitext2", 256, "gpt2", 16),
    ("wikitext2", 512, "gpt2", 8),
    ("wikitext2", 1024, "gpt2", 8),
    ("wikitext2", 256, "gpt2-medium", 8),
    ("wikitext2", 512, "gpt2-medium", 8),
    ("wikitext2", 1024, "gpt2-medium", 8),
    ("wikitext2", 256, "gpt2-large", 8),
    ("wikitext2", 512, "gpt2-large", 8),
    ("wikitext2", 1024, "gpt2-large", 8),
    ("wikitext2", 256, "gpt2-xl", 8),
    ("wikitext2", 512, "gpt2-xl", 8),
    ("wikitext2", 1024, "gpt2-xl", 8),
    ("imdb", 256, "gpt2", 8),
    ("imdb", 256, "gpt2", 16),
    ("imdb", 256, "gpt2", 64),
    ("imdb", 512, "gpt2", 64),
    ("imdb", 1024, "gpt2", 64),
    ("imdb", 256, "gpt2-medium", 64),
    ("imdb", 512, "gpt2-medium", 64),
    ("imdb", 1024, "gpt2-medium", 64),
]


def test_every_sweep_is_counted_here() -> None:
    assert sorted(path.name for path in SWEEPS.glob("*.py")) == sorted([*TRIALS, "imdb_optuna.py"])


def test_the_search_that_is_shipped_begins_with_rows_of_the_reference() -> None:
    sweep = load_sweep(SWEEPS / "imdb_optuna.py")
    assert isinstance(sweep.space, dict)
    fixed = {"dataset": sweep.space["dataset"]}
    rows = {(row.dataset, row.model, row.context_length, row.batch_size) for row in load_reference().rows}
    keys = ("dataset", "model", "context_length", "batch_size")
    assert {tuple({**fixed, **point}[key] for key in keys) for point in sweep.points_to_evaluate} <= rows


@pytest.mark.parametrize(("name", "trials"), TRIALS.items())
def test_a_sweep_has_its_trials(name: str, trials: int) -> None:
    sweep = load_sweep(SWEEPS / name)
    assert len(sweep.trials()) == trials
    assert sweep.name == name.removesuffix(".py").replace("_", "-")


def test_the_reference_sweep_has_the_rows_of_the_reference_table_in_its_order() -> None:
    trials = load_sweep(SWEEPS / "reference_table.py").trials()
    assert [(one.dataset, one.context_length, one.model, one.batch_size) for one in trials] == REFERENCE_ROWS
    assert {(one.epochs, one.optimizer, one.learning_rate, one.pretrained) for one in trials} == (
        {(1, "adafactor", 5e-5, True)}
    )
