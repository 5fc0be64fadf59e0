"""Public names of the package: a change of them is a change of the API, and is made here and in docs/api.md."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import raylm

API = Path(__file__).resolve().parents[1] / "docs" / "api.md"
NAMES = [
    "Resources",
    "Results",
    "RunResult",
    "Sweep",
    "SweepError",
    "TrialConfig",
    "UserError",
    "WorkError",
    "__version__",
    "load_results",
    "load_sweep",
    "run",
]


def test_public_names() -> None:
    assert raylm.__all__ == NAMES
    assert all(hasattr(raylm, name) for name in NAMES)
    assert set(NAMES) <= set(dir(raylm))


def test_parameters_of_run() -> None:
    parameters = inspect.signature(raylm.run).parameters
    flags = ["retry_failed", "wait_for_workers", "quiet", "verbose"]
    keywords = ["storage", "retry_failed", "max_concurrent", "address", "wait_for_workers", "trackers", *flags[2:]]
    assert list(parameters) == ["sweep", *keywords]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in keywords)
    assert [parameters[name].default for name in keywords] == [False if name in flags else None for name in keywords]


def test_public_names_and_those_for_experts_are_documented() -> None:
    documented = re.findall(r"^::: (\S+)$", API.read_text(encoding="utf-8"), re.MULTILINE)
    public = {path.rpartition(".")[2] for path in documented}
    assert set(NAMES) - {"__version__"} <= public
    assert {"finetune", "prepare", "format_markdown", "format_latex", "format_csv"} <= public


def test_star_import_and_unknown_names() -> None:
    code = "from raylm import *; import raylm; run, load_results, Results; raylm.no_such_name"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert "AttributeError: module 'raylm' has no attribute 'no_such_name'" in done.stderr
