"""Commands and Python code of README and docs work as they stand there, and code fits on the page."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from light_command import run_raylm
from ray.scripts.scripts import cli as ray_cli

from raylm.config.sweep_file import load_sweep

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]


COMMANDS = sorted(
    {line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines() if line.strip()}
)


def words_of(line: str) -> list[str]:
    """Return the words of a command line, without the settings of variables before it and a redirection after it."""
    words = itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), shlex.split(line, comments=True))
    return list(itertools.takewhile(lambda word: word != ">", words))


@pytest.mark.parametrize("line", [line for line in COMMANDS if words_of(line)[0] == "raylm"])
def test_raylm_command_of_the_docs_works(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `raylm run` has --dry-run added."""
    monkeypatch.chdir(ROOT)
    _, verb, *arguments = words_of(line)
    done = run_raylm([verb, *arguments, *(["--dry-run"] if verb == "run" else [])])
    nothing = ("is not a results folder", "has no results folders", "s3://bucket/raylm: ")
    has_nothing_to_show = verb not in ("run", "plan", "doctor") and any(text in done.stderr for text in nothing)
    has_placeholders = verb == "doctor" and "to change" in done.stdout  # in the files as they come
    assert done.exit_code == 0 or has_nothing_to_show or has_placeholders, done.stderr


@pytest.mark.parametrize("line", [line for line in COMMANDS if words_of(line)[0] == "python"])
def test_script_of_the_docs_has_its_options(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, script, *arguments = words_of(line)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.syspath_prepend((ROOT / script).parent)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code == 0
    assert {word for word in arguments if word.startswith("--")} <= set(re.findall(r"--[\w-]+", shown.getvalue()))


@pytest.mark.parametrize("line", [line for line in COMMANDS if words_of(line)[0] not in ("raylm", "python")])
def test_other_command_of_the_docs_exists(line: str) -> None:
    """`hf` with --help, `ray` by its options, a script by its file: CI runs the two that begin the README."""
    command = words_of(line)
    if command[0] == "hf":
        client = [sys.executable, "-m", "huggingface_hub.cli.hf"]
        done = subprocess.run([*client, *command[1:], "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    elif command[0] == "ray":
        verb: Any = ray_cli
        for word in itertools.takewhile(lambda word: word != "--", command[1:]):
            if word in getattr(verb, "commands", {}):
                verb = verb.commands[word]
            elif word.startswith("-"):
                assert word in {option for known in verb.params for option in known.opts}
            elif word.endswith(".yaml"):
                assert (ROOT / word).is_file()
        assert verb.name != "cli" and not hasattr(verb, "commands"), "no command of Ray"
    elif command[0] in ("bash", "."):
        assert command[1] == ".venv/bin/activate" or (ROOT / command[1]).is_file()
    else:
        assert (ROOT / command[0]).stat().st_mode & 0o111, f"{command[0]} is no script of this repository"


def test_sweep_of_the_readme_is_the_bundled_one() -> None:
    shown = [block for block in blocks(ROOT / "README.md", "python") if "Sweep(" in block]
    assert shown == [(ROOT / "sweeps" / "imdb_grid.py").read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "own-data.md"], ids=lambda page: page.name)
def test_sweeps_of_the_docs_load(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for number, block in enumerate(one for one in blocks(page, "python") if "sweep = Sweep(" in one):
        file = tmp_path / f"{number}.py"
        file.write_text(block)
        sweep = load_sweep(file)
        assert sweep.search or sweep.trials()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_the_docs_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT / "docs"], ids=lambda page: page.name)
def test_code_of_the_docs_fits_at_1280_pixels(page: Path) -> None:
    shown = [
        line
        for language in ("python", "text", "yaml")
        for block in blocks(page, language)
        for line in block.splitlines()
    ]
    assert [line for line in shown if len(line) > 100 and not line.startswith(("gcloud", "for machine"))] == []
