"""Sweep files of any content and name: each gives a sweep, or one readable message."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hostile_values import accept_or_refuse, assert_readable, time_limit
from hostile_values import isolated as isolated
from hypothesis import given, settings
from hypothesis import strategies as st

from raylm.config.sweep_file import load_sweep
from raylm.errors import UserError

pytestmark = [
    pytest.mark.usefixtures("isolated"),
    pytest.mark.filterwarnings("ignore"),  # Python warns of invalid escapes and such in mutated files
]

PROGRAMS = Path(__file__).resolve().parents[1] / "programs"
SMALL_GRID = (PROGRAMS / "small_grid.py").read_text(encoding="utf-8")
SMALL_SEARCH = (PROGRAMS / "small_search.py").read_text(encoding="utf-8")


@st.composite
def mutated_text(draw: st.DrawFn, text: str) -> str:
    """Draw a text in which up to four lines or characters are deleted, repeated, swapped or inserted."""
    by_line = draw(st.booleans())
    parts = text.splitlines(keepends=True) if by_line else list(text)
    for _ in range(draw(st.integers(1, 4))):
        first, second = (draw(st.integers(0, len(parts) - 1)) for _ in range(2))
        mutation = draw(st.sampled_from(["delete", "repeat", "swap", "insert"]))
        if mutation == "delete":
            del parts[first]
        elif mutation == "repeat":
            parts.insert(second, parts[first])
        elif mutation == "swap":
            parts[first], parts[second] = parts[second], parts[first]
        else:
            parts.insert(first, draw(st.sampled_from("0-.,:=()[]{}'\"\\#\t\0\x0c\x1b\n aé\u2028")))
    return "".join(parts)


@pytest.mark.parametrize("text", [SMALL_GRID, SMALL_SEARCH], ids=["grid", "search"])
def test_mutated_file_gives_a_sweep_or_one_message(text: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.py"

    @given(mutated_text(text))
    @settings(derandomize=True, deadline=None, max_examples=400)
    def check(mutation: str) -> None:
        file.write_text(mutation, encoding="utf-8")
        with time_limit(seconds=5.0):
            accept_or_refuse(lambda: load_sweep(file))

    file.write_text(text)
    assert accept_or_refuse(lambda: load_sweep(file)) is not None
    check()


@pytest.mark.parametrize(
    "source",
    [
        "raise ValueError('\\x1b[2J\\nsecond line')\n",
        "raise ValueError(chr(0x2028) + chr(0xd800))\n",
        "class E(Exception):\n    def __str__(self): raise RuntimeError('no message')\nraise E\n",
        "x = '\x1b[2J' = 1\n",
        "class A:\n    def __repr__(self): raise RuntimeError('no message')\nsweep = A()\n",
        "from raylm import UserError\nraise UserError('raised by the file')\n",
        "import sys\nsys.path = None\n" + SMALL_GRID,
        "x = " + "-" * 50_000 + "1\n",
        "x = " + "(" * 50_000 + "\n",
    ],
)
def test_exception_of_any_kind_in_a_file_is_reported_in_one_line(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "sweep.py"
    file.write_text(source)
    accept_or_refuse(lambda: load_sweep(file))


@pytest.mark.parametrize("name", ["clear\x1b[2J.py", "two\nlines.py", "\ud800.py", "x" * 300, "no/such.py"])
def test_missing_file_with_a_hostile_name_is_reported_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep(tmp_path / name)
    assert_readable(caught.value)
