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
from raylm.errors import SweepError, UserError, nearest, show

LARGEST_FILE_BYTES = 1_000_000


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
        sweep = _find_sweep(path, _run_file(path, _read(path)))
        return sweep.override(values) if values else sweep
    except SweepError as error:
        raise SweepError(error.problems, str(path)) from None


def _read(path: Path) -> str:
    try:
        there = path.exists()
    except OSError as error:
        raise UserError(f"there is no sweep file {path}: {error.strerror}") from None
    if not there:
        beside = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"there is no sweep file {path}{nearest(path.name, beside)}")
    if not path.is_file():
        raise UserError(f"{path} is not a file; expected a Python file that ends in `sweep = Sweep(...)`")
    if path.stat().st_size > LARGEST_FILE_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; a sweep file has at most {LARGEST_FILE_BYTES:,}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a Python file in UTF-8: byte {error.start} is wrong") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


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
        raise UserError(_raised(path, error)) from None
    finally:
        sys.path = path_before
    return vars(module)


def _raised(path: Path, error: BaseException) -> str:
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


def _find_sweep(path: Path, names: Mapping[str, Any]) -> Sweep:
    if "sweep" not in names:
        elsewhere = [name for name, value in names.items() if isinstance(value, Sweep)]
        hint = f"; call {elsewhere[0]!r} `sweep`" if elsewhere else ""
        raise UserError(f"{path} has no `sweep` in it; expected it to end in `sweep = Sweep(...)`{hint}")
    if not isinstance(names["sweep"], Sweep):
        raise UserError(f"{path}: `sweep` is {show(names['sweep'])}; expected a Sweep, as in `sweep = Sweep(...)`")
    sweep: Sweep = names["sweep"]
    return sweep


FOLDERS = (Path(__file__).parents[1] / "sweeps", Path(__file__).parents[2] / "sweeps")
"""In an installed package, and in a checkout."""


@dataclass(frozen=True)
class Shipped:
    """A sweep file."""

    name: str
    """Its file's, without `.py`."""
    file: Path

    @property
    def text(self) -> str:
        """Its content."""
        return self.file.read_text(encoding="utf-8")

    @property
    def about(self) -> str:
        """The first line of what it says of itself."""
        return (ast.get_docstring(ast.parse(self.text)) or "").partition("\n")[0]


def sweeps() -> list[Shipped]:
    """All of them, by name."""
    folder = next(folder for folder in FOLDERS if folder.is_dir())
    return [Shipped(file.stem, file) for file in sorted(folder.glob("*.py"))]


def copy(name: str, to: Path) -> Path:
    """Writes one to a file that is not there yet, or under its own name into a folder; says where it is.

    Raises:
        UserError: if there is no sweep of this name, the file is there, or its folder is not.
    """
    known = {one.name: one for one in sweeps()}
    name = name.removesuffix(".py").replace("-", "_")
    if name not in known:
        raise UserError(f"{show(name)} is no sweep that comes with raylm: {', '.join(known)}{nearest(name, known)}")
    to = to / f"{name}.py" if to.is_dir() else to
    if not to.parent.is_dir():
        raise UserError(f"{to}: there is no folder {to.parent}")
    try:
        with to.open("x", encoding="utf-8") as opened:
            opened.write(known[name].text)
    except FileExistsError as error:
        raise UserError(f"{to} is there already; choose another name, or remove it") from error
    return to


def sweep_file(name: str, trials: Sequence[TrialConfig], launch: Mapping[str, Any]) -> str:
    """Python that makes the sweep again, row by row: of each trial the fields that are not at their default."""
    precision = launch.get("precision", "auto")
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
