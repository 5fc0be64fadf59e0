"""What README and docs say to type works as they say it."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
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


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_docs_is_one(line: str) -> None:
    """As it stands, `raylm run` with --dry-run, a script with --help, `ray` by its options; CI runs the two scripts."""
    words = shlex.split(line, comments=True)
    command = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))  # settings before it
    if command[0] == "raylm":
        dry = ["--dry-run"] if command[1] == "run" else []
        code = "from raylm.cli import app; app()"
        done = subprocess.run(
            [sys.executable, "-c", code, *command[1:], *dry], cwd=ROOT, capture_output=True, text=True, check=False
        )
        nothing_run_yet = command[1] not in ("run", "plan", "doctor") and "is not a results folder" in done.stderr
        assert done.returncode == 0 or nothing_run_yet, done.stderr
    elif command[0] == "python":
        told = subprocess.run(
            [sys.executable, *command[1:2], "--help"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert {word for word in command if word.startswith("--")} <= set(re.findall(r"--[\w-]+", told.stdout))
    elif command[0] == "hf":
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


def test_the_readmes_sweep_is_the_one_that_is_shipped() -> None:
    shown = [block for block in blocks(ROOT / "README.md", "python") if "Sweep(" in block]
    assert shown == [(ROOT / "sweeps" / "imdb_grid.py").read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_sweeps_of_the_docs_load(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for number, block in enumerate(one for one in blocks(page, "python") if "sweep = Sweep(" in one):
        file = tmp_path / f"{number}.py"
        file.write_text(block)
        sweep = load_sweep(file)
        assert sweep.search or sweep.trials()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_the_docs_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
