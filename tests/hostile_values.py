"""Values, names and texts that no sweep should contain, and checks of how they are refused."""

from __future__ import annotations

import datetime
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune

from raylm.config.sweep import Sweep
from raylm.config.trial import Resources, TrialConfig
from raylm.errors import SweepError, UserError
from raylm.results.open_storage import open_storage, resolve_storage

MAX_NAME_BYTES = 255
MAX_CHECKED_TRIALS = 200


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run a test without S3, in an empty working folder, and check that the folder is empty afterwards."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")  # refuses connections at once
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # else credentials are looked for in the network
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert list((tmp_path / "here").rglob("*")) == []


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after this time."""

    def interrupt(*_: object) -> None:
        raise TimeoutError(f"not finished after {seconds} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# ---- checks -------------------------------------------------------------------------------------------------------


def assert_readable(error: UserError) -> None:
    """Check that a message has one line per problem, and no characters that a terminal would act on."""
    lines = str(error).splitlines()
    assert len(lines) == (1 + len(error.problems) if isinstance(error, SweepError) else 1), lines
    assert all(line.isprintable() for line in lines), lines


def assert_safe_folder_name(name: str) -> None:
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert name.isprintable() and not set(name) & set("/\\:\0") and ".." not in name and name[0] not in ".-"


def assert_stays_in_storage(sweep: Sweep) -> None:
    """Check that the names of an accepted sweep are those of folders in its storage, and of folders in these."""
    assert_safe_folder_name(sweep.name)
    assert resolve_storage(sweep, None) == open_storage(sweep.storage or "./runs").subfolder(sweep.name)
    if sweep.search is None and sweep.grid_size <= MAX_CHECKED_TRIALS:
        for trial in sweep.trials():
            assert_safe_folder_name(trial.run_name)


def accept_or_refuse(make: Callable[[], Sweep]) -> Sweep | None:
    """Return a valid sweep, or None if it is refused with a readable message."""
    try:
        sweep = make()
        assert_stays_in_storage(sweep)
    except UserError as error:
        assert_readable(error)
        return None
    return sweep


# ---- values -------------------------------------------------------------------------------------------------------


class ControlCharacters:
    """An object whose `repr` would clear the screen."""

    def __repr__(self) -> str:
        return "\x1b[2J\x07\u202e\u2028"


class NoRepr:
    """An object whose `repr` raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def deep_list() -> list[Any]:
    """Return a list nested deeper than Python's recursion limit."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def recursive_list() -> list[Any]:
    """Return a list that contains itself."""
    value: list[Any] = []
    value.append(value)
    return value


HOSTILE_NAMES = ["", " ", ".", "..", "../x", "/etc", "/etc/passwd", "../../etc/passwd", "a/b", "a/../b", "a\\b", "~"]
HOSTILE_NAMES += ["CON", "a:b", "\x1b[2J", "new\nline", "a\r", "nul\0", "\ud800", "\udcff", "\u202e", "\u2028", "\x85"]
HOSTILE_NAMES += ["😀", "ü", "x" * 300, "x" * 100_000, "s3://bucket/x", "%s{}", "gpt2", "adamw", "$HOME", "-x"]
NUMBERS: list[Any] = [True, -1, 0, 1, 2, 1.5, 1e308, 10**400, 10**5000, -(10**5000), 1j]
NUMBERS += [float("nan"), float("inf"), -float("inf"), Decimal("0.1"), Fraction(1, 3), Fraction(10**400)]
NUMPY_VALUES: list[Any] = [np.int64(3), np.float32("nan"), np.float16(0.5), np.bool_(True), np.str_("gpt2")]
NUMPY_VALUES += [np.array([1, 2]), np.array(3), np.array([]), np.array(["asha", "optuna"]), np.datetime64(0, "s")]
CONTAINERS: list[Any] = [None, [], (), {}, set(), [None], [[[[1]]]], {"a": 1}, {1: 2}, [{}], {3, 4}, b"gpt2"]
CONTAINERS += [range(3), range(2, 9), [0, 0.0, False], [1, "1"], [float("nan")] * 2, (0, 1), [{"seed": 1}], {"seed": 1}]
CONTAINERS += [recursive_list(), deep_list(), datetime.date(2026, 1, 1), Path("x"), memoryview(b"x"), bytearray(3)]
OBJECTS: list[Any] = [object(), object, ControlCharacters(), NoRepr(), [ControlCharacters()], [NoRepr()]]
OBJECTS += [{"seed": NoRepr()}, len, lambda trial: {}, Sweep, TrialConfig(), Resources(), Ellipsis, NotImplemented]
OBJECTS += [TypeError("x"), tune, type]
TUNE_VALUES: list[Any] = [
    tune.grid_search(values) for values in ([], [1, 2], [None], ["x", 1], [np.array([1, 2])], [deep_list()])
]
TUNE_VALUES += [{"grid_search": value} for value in (3, None, "ab", {}, {"a": 1}, range(3), np.array([1, 2]), NoRepr())]
TUNE_VALUES += [tune.grid_search([inner]) for inner in (tune.grid_search([1]), tune.choice([1]))]
TUNE_VALUES += [tune.choice(values) for values in ([], [1, 2], [4, "8"], "gpt2", [np.array([1, 2])])]
TUNE_VALUES += [tune.choice([value]) for value in (NoRepr(), ControlCharacters())]
TUNE_VALUES += [tune.uniform(0, 1), tune.uniform(1, 0), tune.loguniform(1e-5, 1e-3), tune.quniform(0.1, 0.9, 0.1)]
TUNE_VALUES += [tune.randint(2, 9), tune.randint(9, 2), tune.randint(1, 10**5000), tune.qrandint(2, 8, 2)]
TUNE_VALUES += [tune.randn(), tune.sample_from(lambda spec: 1), tune.lograndint(1, 1000), {"grid_search": [1], "a": 1}]
HOSTILE_VALUES: list[Any] = [*HOSTILE_NAMES, *NUMBERS, *NUMPY_VALUES, *CONTAINERS, *OBJECTS, *TUNE_VALUES]
_HOSTILE_IDS = frozenset(map(id, HOSTILE_VALUES))


def list_places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything in nested dicts and lists, except inside hostile values."""
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    nested = [value[key] for key in keys if isinstance(value[key], (dict, list)) and id(value[key]) not in _HOSTILE_IDS]
    return [(value, key) for key in keys] + [place for inner in nested for place in list_places(inner)]
