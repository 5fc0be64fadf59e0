"""The command `raylm` in this process, where it can import neither torch nor Ray nor a client of the hub."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from typer.testing import CliRunner

HEAVY = ("torch", "ray", "transformers", "datasets", "huggingface_hub", "httpx")
"""Packages that no message, plan or table needs."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    exit_code: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def without_heavy_modules() -> Iterator[None]:
    """Import raylm afresh while heavy packages cannot be imported; restore the modules of both at the end."""

    def affected() -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("raylm", *HEAVY)}

    before = affected()
    blocked: dict[str, Any] = dict.fromkeys(HEAVY)  # an import of None raises ModuleNotFoundError
    for name in before:
        del sys.modules[name]
    sys.modules.update(blocked)
    try:
        yield
    finally:
        for name in affected():
            del sys.modules[name]
        sys.modules.update(before)


def run_raylm(arguments: Sequence[str], environment: Mapping[str, str | None] | None = None) -> Finished:
    """Run `raylm` in this process, with the modules that there are; raise what a user would see as a traceback."""
    from raylm.cli.app import app

    settings = {"FORCE_COLOR": None, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb", **(environment or {})}
    if "RAYLM_CACHE" not in settings:
        settings["RAYLM_CACHE"] = str(Path.cwd() / "cache")
    result = CliRunner().invoke(app, list(arguments), env=settings, prog_name="raylm")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Finished(result.exit_code, result.stdout, result.stderr)
