"""Sweep files: loading one, listing and copying those bundled with raylm, and formatting trials as a new one."""

from __future__ import annotations

import ast
import sys
import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from raylm import shadowing
from raylm.config.overrides import parse_overrides
from raylm.config.sweep import Sweep
from raylm.config.trial import KEY_FIELDS, TrialConfig
from raylm.errors import NO_HOME, SweepError, UserError, format_suggestion, is_home_unknown, safe_repr
from raylm.files import UnreadableTextError, read_utf8

MAX_FILE_BYTES = 1_000_000
MIN_TRIALS_WITH_COMMON_FIELDS = 10
"""Number of trials from which a formatted sweep file gives the fields that all of them share once."""
BUNDLED_SWEEP_FOLDERS = (Path(__file__).parents[1] / "sweeps", Path(__file__).parents[2] / "sweeps")
"""Folder of the bundled sweep files: in an installed package, and in a checkout."""


# ---- loading ------------------------------------------------------------------------------------------------------


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Run a sweep file and return its `sweep`.

    The file is executed as Python: load only files that you trust. It can import modules from its own folder.

    Args:
        path: Python file that ends in `sweep = Sweep(...)`.
        overrides: `field=value` for any field of `TrialConfig`; sets the field in all trials.

    Raises:
        SweepError: If values in the file or the overrides are invalid; lists all of them.
        UserError: If the file cannot be read or run, or does not define `sweep`.
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
        exists = path.exists()
    except OSError as error:
        raise UserError(f"there is no sweep file {path}: {error.strerror}") from None
    if not exists:
        siblings = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"there is no sweep file {path}{format_suggestion(path.name, siblings)}")
    if not path.is_file():
        raise UserError(f"{path} is not a file; expected a Python file that ends in `sweep = Sweep(...)`")
    if (size := path.stat().st_size) > MAX_FILE_BYTES:
        raise UserError(f"{path} has {size:,} bytes; expected a sweep file of at most {MAX_FILE_BYTES:,} bytes")
    try:
        return read_utf8(path, encoding="utf-8-sig")  # some editors write a byte order mark
    except UnreadableTextError as error:
        raise UserError(f"{path} {error}; expected a Python file in UTF-8") from None


def _run_file(path: Path, source: str) -> Mapping[str, Any]:
    """Run a sweep file, with its folder on `sys.path` as under `python FILE`, and return its global names."""
    _check_shadowing(path)
    module = ModuleType("raylm_sweep_file")
    module.__file__ = str(path)
    original_sys_path = list(sys.path)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: a sweep file must not end the command
        raise UserError(_describe_exception(path, error)) from None
    finally:
        sys.path = original_sys_path
    return vars(module)


def _check_shadowing(path: Path) -> None:
    """Check that no file beside a sweep file, or in the working folder, is imported instead of a package.

    Raises:
        UserError: if one is: of the processes that Ray and the trackers start, some look there first.
    """
    for folder in dict.fromkeys((str(path.parent), ".")):
        if message := shadowing.describe_shadowing(folder):
            raise UserError(message)


def _describe_exception(path: Path, error: BaseException) -> str:
    """Return the message for an exception of a sweep file, with the line of the file that raised it."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # a user's own exception class, whose `__str__` raises
        message = "no message available"
    if "null bytes" in message:
        return f"{path} is not valid Python: it contains null bytes"
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno} is not valid Python: {error.msg}: {(error.text or '').strip()}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    location = f"{path}:{lines[-1]}" if lines else str(path)
    if is_home_unknown(error):  # of Ray, which looks for a file there when it is imported
        return f"{location}: {NO_HOME}"
    return f"{location} raises {type(error).__name__}: {message}"


def _find_sweep(path: Path, namespace: Mapping[str, Any]) -> Sweep:
    if "sweep" not in namespace:
        candidates = [name for name, value in namespace.items() if isinstance(value, Sweep)]
        hint = f"; rename {candidates[0]!r} to `sweep`" if candidates else ""
        raise UserError(f"{path} has no `sweep`; expected it to end in `sweep = Sweep(...)`{hint}")
    sweep = namespace["sweep"]
    if not isinstance(sweep, Sweep):
        raise UserError(f"{path}: `sweep` is {safe_repr(sweep)}; expected a Sweep, as in `sweep = Sweep(...)`")
    return sweep


# ---- bundled sweeps -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BundledSweep:
    """Sweep file that comes with raylm."""

    name: str
    """File name without `.py`."""
    path: Path

    @property
    def text(self) -> str:
        """Content of the file."""
        return self.path.read_text(encoding="utf-8")

    @property
    def summary(self) -> str:
        """First line of the file's docstring."""
        return (ast.get_docstring(ast.parse(self.text)) or "").partition("\n")[0]


def list_bundled_sweeps() -> list[BundledSweep]:
    """Return the sweep files that come with raylm, sorted by name."""
    folder = next(folder for folder in BUNDLED_SWEEP_FOLDERS if folder.is_dir())
    return [BundledSweep(file.stem, file) for file in sorted(folder.glob("*.py"))]


def copy_bundled_sweep(name: str, destination: Path) -> Path:
    """Copy a bundled sweep file and return the path of the copy. Existing files are never overwritten.

    Args:
        name: Name of the sweep, with or without `.py`; `-` and `_` are equivalent.
        destination: New file, or a folder in which the copy keeps its name.

    Raises:
        UserError: If there is no such sweep, the file exists, or it cannot be created.
    """
    bundled = {sweep.name: sweep for sweep in list_bundled_sweeps()}
    name = name.removesuffix(".py").replace("-", "_")
    if name not in bundled:
        hint = format_suggestion(name, bundled)
        raise UserError(f"{safe_repr(name)} is not bundled with raylm; expected one of {', '.join(bundled)}{hint}")
    try:
        destination = destination / f"{name}.py" if destination.is_dir() else destination
        if not destination.parent.is_dir():
            raise UserError(f"{destination}: there is no folder {destination.parent}; create it first")
        with destination.open("x", encoding="utf-8") as file:
            file.write(bundled[name].text)
    except FileExistsError:
        raise UserError(f"{destination} already exists; choose another name, or remove it") from None
    except OSError as error:
        raise UserError(f"{destination} cannot be written: {error.strerror}") from None
    return destination


# ---- formatting ---------------------------------------------------------------------------------------------------


def format_sweep_file(name: str, trials: Sequence[TrialConfig], precision: str = "auto") -> str:
    """Return the text of a sweep file that defines these trials, one space per trial.

    Fields at their defaults are omitted, except dataset, model, context length and batch size. Of many trials, the
    fields that are equal in all of them are given once.
    """
    spaces = [
        {name: value for name, value in trial.as_dict().items() if name in (*KEY_FIELDS, *trial.changed_fields)}
        for trial in trials
    ]
    common = {}
    if len(trials) >= MIN_TRIALS_WITH_COMMON_FIELDS:
        common = dict(set.intersection(*(set(space.items()) for space in spaces)))
        common = {name: value for name, value in spaces[0].items() if name in common}
    options = [f"    name={name!r},"]
    options += [f"    precision={precision!r},"] if precision != "auto" else []
    rows = [
        "        {" + ", ".join([*(["**common"] if common else []), *_format_items(space, common)]) + "},"
        for space in spaces
    ]
    head = ["from raylm import Sweep", "", *([f"common = {common!r}", ""] if common else [])]
    return "\n".join([*head, "sweep = Sweep(", *options, "    space=[", *rows, "    ],", ")"])


def _format_items(space: Mapping[str, Any], common: Collection[str]) -> list[str]:
    """Return the items of a space that are not common to all, as they are written in a dict."""
    return [f"{name!r}: {value!r}" for name, value in space.items() if name not in common]
