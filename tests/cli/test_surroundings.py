"""Commands in unusual surroundings: no working folder, a bare environment, results folders of others, `python -O`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from light_command import run_raylm, without_heavy_modules
from permissions import permissions_of

OLD_RESULTS = Path(__file__).resolve().parents[1] / "data" / "old_results"
GONE = "the working folder no longer exists; change to one that does"
FINISHED = """from raylm import Sweep
sweep = Sweep(name="old-results", space={"dataset": "pydocs", "model": "gpt2-nano", "context_length": 32,
    "batch_size": 4, "epochs": 2, "learning_rate": 1e-3, "max_train_tokens": 2000})
"""
"""Sweep whose only trial is finished in `tests/data/old_results`."""


@pytest.fixture(scope="module", autouse=True)
def _light() -> Iterator[None]:
    with without_heavy_modules():
        yield


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder in the working folder, beside the file of its sweep."""
    monkeypatch.chdir(tmp_path)
    Path("sweep.py").write_text(FINISHED)
    return Path(shutil.copytree(OLD_RESULTS, tmp_path / "runs" / "old-results"))


@pytest.fixture
def _no_working_folder(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    yield
    os.chdir(tmp_path)


@pytest.mark.usefixtures("_no_working_folder")
@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "runs/old-results"],
        ["status", "runs/old-results"],
        ["plan", "sweep.py"],
        ["plan", "{folder}/sweep.py"],
        ["run", "{folder}/sweep.py"],
        ["run", "{folder}/sweep.py", "--storage", "{folder}/runs"],
        ["cp", "quickstart", "x.py"],
    ],
    ids=" ".join,
)
def test_command_without_its_working_folder_is_refused_in_one_line(tmp_path: Path, arguments: list[str]) -> None:
    cache = {"RAYLM_CACHE": str(tmp_path / "cache")}
    done = run_raylm([argument.format(folder=tmp_path) for argument in arguments], cache)
    assert done.exit_code == 2 and GONE in done.stderr, done
    assert done.stderr.count("\n") == 1 and "same command" not in done.stderr


@pytest.mark.usefixtures("_no_working_folder")
def test_absolute_paths_need_no_working_folder(results: Path, tmp_path: Path) -> None:
    cache = {"RAYLM_CACHE": str(tmp_path / "cache")}
    for arguments in (["report", str(results)], ["plan", f"{tmp_path}/sweep.py", "--storage", f"{tmp_path}/runs"]):
        assert run_raylm(arguments, cache).exit_code == 0


@pytest.mark.parametrize("verb", ["report", "status"])
def test_bare_environment_changes_nothing(results: Path, verb: str) -> None:
    bare = dict.fromkeys(["HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TERM", "NO_COLOR", "COLUMNS"])
    usual = run_raylm([verb, "runs/old-results"])
    assert usual.exit_code == 0
    assert run_raylm([verb, "runs/old-results"], bare) == usual
    assert run_raylm([verb, "runs/old-results"], {"CI": "1", "TERM": "xterm-256color"}) == usual


@pytest.mark.parametrize("option", ["-O", "-P"])
def test_options_of_python_change_nothing(results: Path, option: str) -> None:
    raylm = str(Path(sysconfig.get_path("scripts"), "raylm"))
    command = [sys.executable, option, raylm, "report", "runs/old-results"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run_raylm(["report", "runs/old-results"]).stdout


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0, 0o666)])
def test_files_have_the_permissions_that_the_umask_leaves(results: Path, umask: int, mode: int) -> None:
    for file in ("results.md", "results.csv"):
        (results / file).unlink()
    before = os.umask(umask)
    try:
        assert run_raylm(["run", "sweep.py"]).exit_code == 0
    finally:
        os.umask(before)
    files = [results / file for file in ("results.md", "results.csv", "report.html", "sweep.json")]
    assert {file.stat().st_mode & 0o777 for file in files} == {mode}


# ---- results folders of others ------------------------------------------------------------------------------------


def test_moved_renamed_and_linked_folder_has_the_same_table(results: Path, tmp_path: Path) -> None:
    table = run_raylm(["report", "runs/old-results"])
    assert table.exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    moved = results.rename(tmp_path / "elsewhere" / "renamed")
    (tmp_path / "link").symlink_to(moved)
    for place in ("elsewhere/renamed", "link", "link/", "./elsewhere/../link"):
        assert run_raylm(["report", place]) == table
    (tmp_path / "linked-runs").mkdir()
    (tmp_path / "linked-runs" / "old-results").symlink_to(moved)
    assert "1 done" in run_raylm(["run", "sweep.py", "--storage", "linked-runs"]).stdout


def test_folder_that_cannot_be_written_is_shown_and_what_is_not_written_is_said(results: Path) -> None:
    usual = {verb: run_raylm([verb, "runs/old-results"]) for verb in ("report", "status")}
    folders = [results, *(path for path in results.rglob("*") if path.is_dir())]
    plan = run_raylm(["plan", "sweep.py"])
    with permissions_of(*folders, mode=0o555):
        assert {verb: run_raylm([verb, "runs/old-results"]) for verb in usual} == usual
        assert run_raylm(["plan", "sweep.py"]).exit_code == plan.exit_code == 0
        page = run_raylm(["report", "runs/old-results", "--format", "html"])
        evaluated = run_raylm(["evaluate", "runs/old-results", "--context-lengths", "16"])
        again = run_raylm(["run", "sweep.py"])
    for refused in (page, evaluated):
        assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "Permission denied" in refused.stderr
        assert "a copy of the folder" in refused.stderr
    assert again.exit_code == 0 and "1 done" in again.stdout  # nothing was left to run
    assert "results.md and results.csv are not up to date: Permission denied" in again.stderr
    assert "report.html is not up to date: Permission denied" in again.stderr


@pytest.mark.parametrize("part", [".", "sweep.json", "launch-001", "launch-001/*-e2-4a87c83998"])
@pytest.mark.parametrize("command", [["report", "runs/old-results"], ["run", "sweep.py"]], ids=" ".join)
def test_folder_that_cannot_be_read_is_refused_not_taken_for_unfinished(
    results: Path, part: str, command: list[str]
) -> None:
    (path,) = results.glob(part) if part != "." else [results]
    before = run_raylm(["report", "runs/old-results"])
    with permissions_of(path, mode=0):
        done = run_raylm(command)
    assert done.exit_code == 2 and done.stderr.count("\n") == 1 and "ask its owner for permission" in done.stderr, done
    assert run_raylm(["report", "runs/old-results"]) == before
