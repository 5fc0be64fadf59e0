"""A sweep file to a `Sweep`: run it, find `sweep` in it, say in one message what is wrong with it."""

from __future__ import annotations

import ast
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from raylm.config.sweep import Sweep
from raylm.config.trial import TrialConfig
from raylm.config.validation import parse_overrides
from raylm.errors import SweepError, UserError, format_suggestion, safe_repr
from raylm.files import UnreadableTextError, read_utf8

MAX_FILE_BYTES = 1_000_000


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file.

    Args:
        path: Python file that ends in `sweep = Sweep(...)`.
        overrides: `field=value` for any field of `TrialConfig`, set for all trials.

    Raises:
        UserError: if the file cannot be read or run, has no `sweep`, or is wrong in any of its values.
    """
    path = Path(path)
    values = parse_overrides(overrides, [field.name for field in fields(TrialConfig)])
    try:
        sweep = _find_sweep(path, _run_file(path, _read_source(path)))
        return sweep.override(values) if values else sweep
    except SweepError as error:
        raise SweepError(error.problems, str(path)) from None


def _read_source(path: Path) -> str:
    try:
        there = path.exists()
    except OSError as error:
        raise UserError(f"there is no sweep file {path}: {error.strerror}") from None
    if not there:
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"there is no sweep file {path}{format_suggestion(path.name, beside)}")
    if not path.is_file():
        raise UserError(f"{path} is not a file; expected a Python file that ends in `sweep = Sweep(...)`")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; a sweep file has at most {MAX_FILE_BYTES:,}")
    try:
        return read_utf8(path, encoding="utf-8-sig")
    except UnreadableTextError as error:
        raise UserError(f"{path} {error}; expected a Python file that ends in `sweep = Sweep(...)`") from None


def _run_file(path: Path, source: str) -> Mapping[str, Any]:
    """The names that the file defines. Its folder can be imported from, as with `python FILE`."""
    module = ModuleType("raylm_sweep_file")
    module.__file__ = str(path)
    path_before = list(sys.path)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: a sweep file must not end the command
        raise UserError(_describe_exception(path, error)) from None
    finally:
        sys.path = path_before
    return vars(module)


def _describe_exception(path: Path, error: BaseException) -> str:
    """What the file raised, at the file's own line."""
    try:
        said = " ".join(str(error).split())
    except Exception:
        said = "an error without words"
    if "null bytes" in said:
        return f"{path} is not a Python file: it holds null bytes"
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno} is not Python: {error.msg}: {(error.text or '').strip()}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"{path}:{lines[-1]}" if lines else str(path)
    return f"{where} raises {type(error).__name__}: {said}"


def _find_sweep(path: Path, namespace: Mapping[str, Any]) -> Sweep:
    if "sweep" not in namespace:
        elsewhere = [name for name, value in namespace.items() if isinstance(value, Sweep)]
        hint = f"; call {elsewhere[0]!r} `sweep`" if elsewhere else ""
        raise UserError(f"{path} has no `sweep` in it; expected it to end in `sweep = Sweep(...)`{hint}")
    if not isinstance(namespace["sweep"], Sweep):
        raise UserError(
            f"{path}: `sweep` is {safe_repr(namespace['sweep'])}; expected a Sweep, as in `sweep = Sweep(...)`"
        )
    sweep: Sweep = namespace["sweep"]
    return sweep


BUNDLED_SWEEP_FOLDERS = (Path(__file__).parents[1] / "sweeps", Path(__file__).parents[2] / "sweeps")
"""In an installed package, and in a checkout."""


@dataclass(frozen=True)
class BundledSweep:
    """A sweep file."""

    name: str
    """Its file's, without `.py`."""
    path: Path

    @property
    def text(self) -> str:
        """Its content."""
        return self.path.read_text(encoding="utf-8")

    @property
    def summary(self) -> str:
        """The first line of what it says of itself."""
        return (ast.get_docstring(ast.parse(self.text)) or "").partition("\n")[0]


def list_bundled_sweeps() -> list[BundledSweep]:
    """All of them, by name."""
    folder = next(folder for folder in BUNDLED_SWEEP_FOLDERS if folder.is_dir())
    return [BundledSweep(file.stem, file) for file in sorted(folder.glob("*.py"))]


def copy_bundled_sweep(name: str, destination: Path) -> Path:
    """Writes one to a file that is not there yet, or under its own name into a folder; says where it is.

    Raises:
        UserError: if there is no sweep of this name, the file is there, or its folder is not.
    """
    known = {one.name: one for one in list_bundled_sweeps()}
    name = name.removesuffix(".py").replace("-", "_")
    if name not in known:
        raise UserError(
            f"{safe_repr(name)} is no sweep that comes with raylm: {', '.join(known)}{format_suggestion(name, known)}"
        )
    destination = destination / f"{name}.py" if destination.is_dir() else destination
    if not destination.parent.is_dir():
        raise UserError(f"{destination}: there is no folder {destination.parent}")
    try:
        with destination.open("x", encoding="utf-8") as opened:
            opened.write(known[name].text)
    except FileExistsError as error:
        raise UserError(f"{destination} is there already; choose another name, or remove it") from error
    return destination


def format_sweep_file(name: str, trials: Sequence[TrialConfig], precision: str = "auto") -> str:
    """Python that makes the sweep again, row by row: of each trial the fields that are not at their default."""
    options = [f"    name={name!r},"]
    options += [f"    precision={precision!r},"] if precision != "auto" else []
    defaults = {field.name: field.default for field in fields(TrialConfig)}
    always = ("dataset", "model", "context_length", "batch_size")
    points = [
        {field: value for field, value in trial.as_dict().items() if field in always or value != defaults[field]}
        for trial in trials
    ]
    space = [f"        {point!r}," for point in points]
    return "\n".join(["from raylm import Sweep", "", "sweep = Sweep(", *options, "    space=[", *space, "    ],", ")"])
