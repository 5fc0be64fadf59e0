"""`raylm ls`, `raylm cp`: each sweep that comes with raylm can be copied and stands by itself; shells complete them."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raylm.cli.app import app
from raylm.config import sweep_file
from raylm.config.sweep_file import load_sweep

SWEEPS = Path(__file__).resolve().parents[2] / "sweeps"
NAMES = sorted(file.stem for file in SWEEPS.glob("*.py"))


def test_all_are_listed_with_what_they_say_of_themselves() -> None:
    listed = CliRunner().invoke(app, ["ls"]).stdout.splitlines()
    assert [line.split()[0] for line in listed] == NAMES
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in listed)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_the_same_sweep_wherever_it_is(name: str, tmp_path: Path) -> None:
    copied = sweep_file.copy_bundled_sweep(name, tmp_path / "mine.py")
    one, other = load_sweep(copied), load_sweep(SWEEPS / f"{name}.py")
    assert (one.name, one.num_samples) == (other.name, other.num_samples)
    if one.search is None:
        assert one.trials() == other.trials()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("imdb-gird", "mine.py"), "did you mean 'imdb_grid'?"),
        (("imdb_grid", "there.py"), "there.py is there already"),
        (("imdb_grid", "no/mine.py"), "there is no folder no"),
    ],
)
def test_what_cannot_be_copied_is_told_and_nothing_is_overwritten(
    arguments: tuple[str, str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.py").write_text("mine")
    done = CliRunner().invoke(app, ["cp", *arguments])
    assert done.exit_code == 2 and told in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["there.py"] and Path("there.py").read_text() == "mine"


def test_a_copy_into_a_folder_has_its_own_name(tmp_path: Path) -> None:
    assert sweep_file.copy_bundled_sweep("quickstart", tmp_path) == tmp_path / "quickstart.py"


@pytest.mark.parametrize(("words", "offered"), [("raylm cp im", {"imdb_grid", "imdb_optuna"}), ("raylm pl", {"plan"})])
def test_a_shell_completes_verbs_and_names(words: str, offered: set[str]) -> None:
    asked = {"_RAYLM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    command = [str(Path(sysconfig.get_path("scripts"), "raylm"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **asked}, timeout=60)
    assert set(done.stdout.split()) == offered


def test_the_reference_table_is_its_two_grids() -> None:
    whole, *parts = (load_sweep(SWEEPS / f"{name}.py") for name in ("reference_table", "wikitext2_grid", "imdb_grid"))
    assert whole.trials() == [trial for part in parts for trial in part.trials()]
