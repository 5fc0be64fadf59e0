"""`scripts/install`: which build of torch it takes, from indexes that serve the CPU build in different ways."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"

FAKE_PYTHON = """#!{python}
import json, os, sys
arguments = sys.argv[1:]
with open(os.environ["PIP_CALLS"], "a") as file:
    file.write(json.dumps(arguments) + "\\n")
served, line = os.environ["SERVED"].split(), " ".join(arguments)
if "+cpu" in line:
    sys.exit(not ("local" in served or ("{index}" in line and "pytorch" in served)))
if "--report" in arguments:
    names = ["torch", "sympy"] + (["nvidia-cublas"] if "cuda" in served else [])
    print(json.dumps({{"install": [{{"metadata": {{"name": name}}}} for name in names]}}))
    sys.exit("nothing" in served)
"""
"""Python whose pip resolves torch from the indexes named in $SERVED, and writes each call to a file."""


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="takes the CUDA build")
@pytest.mark.skipif(sys.platform != "linux", reason="takes the only build there is")
@pytest.mark.parametrize(
    ("served", "index", "asks_pytorch"),
    [
        pytest.param("local", False, False, id="with +cpu"),
        pytest.param("plain", False, False, id="under its plain name"),
        pytest.param("cuda pytorch", True, True, id="at PyTorch's index"),
        pytest.param("cuda", False, True, id="nowhere"),
        pytest.param("nothing", False, True, id="no index"),
    ],
)
def test_cpu_build_is_taken_where_it_is_served(tmp_path: Path, served: str, index: bool, asks_pytorch: bool) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON.format(python=sys.executable, index=PYTORCH_INDEX))
    python.chmod(0o755)
    calls_file = tmp_path / "calls"
    environment = {"RAYLM_VENV": str(tmp_path / "venv"), "PYTHON": sys.executable, "PIP_CALLS": str(calls_file)}
    done = subprocess.run(
        [ROOT / "scripts" / "install"],
        env={**os.environ, **environment, "SERVED": served},
        capture_output=True,
        text=True,
        check=True,
    )
    calls = [" ".join(json.loads(line)) for line in calls_file.read_text().splitlines()]
    assert calls[-1].endswith("--editable .") and (PYTORCH_INDEX in calls[-1]) is index
    probes = [call for call in calls[:-1] if PYTORCH_INDEX in call]
    assert bool(probes) is asks_pytorch and all("--retries 0 --timeout 5" in call for call in probes)
    assert ("cannot be reached" in done.stderr) is (asks_pytorch and not index)


def test_oldest_versions_are_constraints_for_all_dependencies_and_never_newer_than_those_of_ci() -> None:
    def parse(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    script = subprocess.run(
        [sys.executable, ROOT / "scripts" / "lowest.py"], capture_output=True, text=True, check=True
    )
    lowest = dict(line.split("==") for line in script.stdout.splitlines())
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in pinned)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name = re.split(r"[\[>]", requirement)[0].lower()
        assert requirement.endswith(f">={lowest[name]}")
        assert parse(lowest[name]) <= parse(tested[name])
    page = (ROOT / "docs" / "install.md").read_text()
    for label, name in (("torch", "torch"), ("transformers", "transformers"), ("Ray", "ray")):
        assert f"| {label} | {lowest[name]} |" in page
    assert f"| Python | {project['requires-python'].removeprefix('>=')} |" in page
