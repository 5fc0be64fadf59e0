"""Bundled sweep files: their trials, listing, copying and shell completion."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylm.cli.app import app
from raylm.config.sweep_file import copy_bundled_sweep, load_sweep
from raylm.report.reference import load_reference

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
NAMES = sorted(file.stem for file in SWEEPS.glob("*.py"))
TRIAL_COUNTS = {
    "imdb_grid": 8,
    "quickstart": 6,
    "reference_table": 21,
    "wikitext103_grid": 12,
    "wikitext2_grid": 13,
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
"""Dataset, context length, model and batch size of each row of the reference table, in its order."""


# ---- trials -------------------------------------------------------------------------------------------------------


def test_every_bundled_sweep_is_a_grid_counted_here_or_the_search() -> None:
    assert sorted([*TRIAL_COUNTS, "imdb_optuna"]) == NAMES


@pytest.mark.parametrize(("name", "trial_count"), TRIAL_COUNTS.items())
def test_grid_has_its_name_and_number_of_trials(name: str, trial_count: int) -> None:
    sweep = load_sweep(SWEEPS / f"{name}.py")
    assert len(sweep.trials()) == trial_count
    assert sweep.name == name.replace("_", "-")


def test_reference_sweep_has_the_rows_of_the_reference_table_in_its_order() -> None:
    trials = load_sweep(SWEEPS / "reference_table.py").trials()
    assert [(trial.dataset, trial.context_length, trial.model, trial.batch_size) for trial in trials] == REFERENCE_ROWS
    settings = {(trial.epochs, trial.optimizer, trial.learning_rate, trial.pretrained) for trial in trials}
    assert settings == {(1, "adafactor", 5e-5, True)}


def test_reference_sweep_equals_its_two_grids() -> None:
    names = ("reference_table", "wikitext2_grid", "imdb_grid")
    reference, wikitext2, imdb = (load_sweep(SWEEPS / f"{name}.py").trials() for name in names)
    assert reference == wikitext2 + imdb


def test_bundled_search_begins_with_rows_of_the_reference_table() -> None:
    sweep = load_sweep(SWEEPS / "imdb_optuna.py")
    assert isinstance(sweep.space, dict)
    fixed = {"dataset": sweep.space["dataset"]}
    rows = {(row.dataset, row.model, row.context_length, row.batch_size) for row in load_reference().rows}
    fields = ("dataset", "model", "context_length", "batch_size")
    assert {tuple({**fixed, **point}[field] for field in fields) for point in sweep.points_to_evaluate} <= rows


# ---- listing and copying ------------------------------------------------------------------------------------------


def test_ls_lists_all_bundled_sweeps_with_their_summaries() -> None:
    lines = CliRunner().invoke(app, ["ls"]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


@pytest.mark.parametrize("name", NAMES)
def test_copy_defines_the_same_sweep_in_any_folder(name: str, tmp_path: Path) -> None:
    copy = load_sweep(copy_bundled_sweep(name, tmp_path / "mine.py"))
    original = load_sweep(SWEEPS / f"{name}.py")
    assert (copy.name, copy.num_samples) == (original.name, original.num_samples)
    if copy.search is None:
        assert copy.trials() == original.trials()


def test_copy_into_a_folder_keeps_the_name(tmp_path: Path) -> None:
    assert copy_bundled_sweep("quickstart", tmp_path) == tmp_path / "quickstart.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("imdb-gird", "mine.py"), "did you mean 'imdb_grid'?"),
        (("imdb_grid", "existing.py"), "existing.py already exists"),
        (("imdb_grid", "no/mine.py"), "there is no folder no"),
        (("imdb_grid", "x" * 300), "cannot be written: File name too long"),
    ],
)
def test_copy_that_is_impossible_is_reported_and_overwrites_nothing(
    arguments: tuple[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("existing.py").write_text("mine")
    result = CliRunner().invoke(app, ["cp", *arguments])
    assert result.exit_code == 2 and message in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["existing.py"]
    assert Path("existing.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("line", "completions"), [("raylm cp im", {"imdb_grid", "imdb_optuna"}), ("raylm pl", {"plan"})]
)
def test_shell_completes_verbs_and_names(line: str, completions: set[str]) -> None:
    request = {"_RAYLM_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    command = [str(Path(sysconfig.get_path("scripts"), "raylm"))]
    environment = {**os.environ, **request}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=60)
    assert set(result.stdout.split()) == completions
