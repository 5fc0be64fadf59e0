"""Loading of sweep files: any file gives a `Sweep` or one message that says what to correct."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raylm.config.sweep import Sweep
from raylm.config.sweep_file import MAX_FILE_BYTES, load_sweep
from raylm.config.trial import TrialConfig
from raylm.errors import UserError

VALID = 'from raylm import Sweep\nsweep = Sweep(name="tried", space={"seed": {"grid_search": [1, 2]}, "epochs": 3})\n'


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    """Path of a sweep file. Checks after the test that loading has restored `sys.path`."""
    before = list(sys.path)
    yield tmp_path / "my_sweep.py"
    after, sys.path[:] = list(sys.path), before
    assert after == before


def message_of(file: Path | str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        load_sweep(file, overrides)
    return str(caught.value)


def test_valid_file_is_loaded(file: Path) -> None:
    file.write_text(VALID)
    sweep = load_sweep(file)
    assert sweep.name == "tried" and [(trial.seed, trial.epochs) for trial in sweep.trials()] == [(1, 3), (2, 3)]
    assert load_sweep(str(file)) == sweep


# ---- files that cannot be loaded ----------------------------------------------------------------------------------


def test_missing_file_suggests_the_nearest_name(file: Path) -> None:
    file.write_text(VALID)
    message = message_of(file.with_name("my_sweeps.py"))
    assert "there is no sweep file" in message and "did you mean 'my_sweep.py'" in message
    assert "did you mean" not in message_of(file.with_name("other.py"))
    assert "there is no sweep file" in message_of(file.parent / "no" / "such" / "folder.py")


@pytest.mark.parametrize("name", ["x" * 300, "nul\0", "my_sweep.py/below"], ids=["long", "nul", "below a file"])
def test_impossible_path_is_reported(file: Path, name: str) -> None:
    file.write_text(VALID)
    message_of(file.with_name("a").parent / name)


def test_folder_is_rejected(file: Path) -> None:
    assert "is not a file" in message_of(file.parent)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["has no `sweep`", "sweep = Sweep(...)"]),
        (b"# nothing\n\n# but comments\n", ["has no `sweep`"]),
        (b"\xff\xfes\0w\0", ["UTF-8", "byte 0"]),
        (b"# caf\xe9\n", ["UTF-8", "byte 5"]),
        (b"seed = 1\0\n", ["my_sweep.py", "null bytes"]),
        (b"#" * (MAX_FILE_BYTES + 1), ["1,000,001 bytes", "at most 1,000,000"]),
        (b"\x89PNG\r\n\x1a\n\0\0", ["my_sweep.py", "UTF-8"]),
    ],
    ids=["empty", "comments", "utf-16", "latin-1", "null bytes", "large", "binary"],
)
def test_file_without_a_sweep_is_reported(file: Path, content: bytes, words: list[str]) -> None:
    file.write_bytes(content)
    message = message_of(file)
    assert all(word in message for word in words) and len(message) < 400


def test_byte_order_mark_is_ignored(file: Path) -> None:
    file.write_text(VALID, encoding="utf-8-sig")
    assert load_sweep(file).name == "tried"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("seed = 1\nsweep = Sweep(\n", ["my_sweep.py:2", "is not valid Python"]),
        ("if True:\nseed = 1\n", ["my_sweep.py:2", "is not valid Python", "indented"]),
        ("(" * 300, ["my_sweep.py:1", "is not valid Python"]),
        ("seed = 1\n\nseed / 0\n", ["my_sweep.py:3", "ZeroDivisionError"]),
        ("sweep = Sweep(name='a', space={})\n", ["my_sweep.py:1", "NameError", "'Sweep'"]),
        ("import no_such_module\n", ["my_sweep.py:1", "ModuleNotFoundError", "no_such_module"]),
        ("def f():\n    raise KeyError('k')\nf()\n", ["my_sweep.py:2", "KeyError"]),
        ("from raylm import Sweep\nsweep = Sweep()\n", ["my_sweep.py:2", "name", "space"]),
        ("from raylm import Sweep\nsweep = Sweep('a', {'seed': 1})\n", ["my_sweep.py:2", "TypeError"]),
        ("import sys\nsys.exit(0)\n", ["my_sweep.py:2", "SystemExit"]),
        ("raise SystemExit('bye')\n", ["my_sweep.py:1", "SystemExit", "bye"]),
        ("def f():\n    f()\nf()\n", ["my_sweep.py", "RecursionError"]),
        ("seed = 1\nraise SyntaxError('of its own')\n", ["my_sweep.py:2", "of its own"]),
    ],
)
def test_exception_of_a_file_is_reported_with_its_line(file: Path, source: str, words: list[str]) -> None:
    file.write_text(source)
    message = message_of(file)
    assert all(word in message for word in words) and len(message) < 800


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("sweeps = 3\n", ["has no `sweep`"]),
        (VALID.replace("sweep =", "my_grid ="), ["has no `sweep`", "rename 'my_grid' to `sweep`"]),
        ("sweep = {'seed': 1}\n", ["`sweep` is {'seed': 1}", "expected a Sweep"]),
        ("sweep = None\n", ["`sweep` is None"]),
        ("from raylm import Sweep as sweep\n", ["expected a Sweep"]),
    ],
)
def test_sweep_of_another_type_or_name_is_reported(file: Path, source: str, words: list[str]) -> None:
    file.write_text(source)
    message = message_of(file)
    assert str(file) in message and all(word in message for word in words)


def test_all_problems_of_a_sweep_are_reported_together_with_the_file(file: Path) -> None:
    file.write_text(VALID.replace("epochs", "epoch").replace("[1, 2]", "[-1, 2.5]").replace("tried", "a/b"))
    message = message_of(file)
    assert str(file) in message and "4 mistakes" in message
    assert all(word in message for word in ("'a/b'", "got -1", "got 2.5", "did you mean 'epochs'"))


# ---- side effects of a file ---------------------------------------------------------------------------------------


def test_module_beside_the_file_can_be_imported(file: Path) -> None:
    (file.parent / "beside_the_sweep_file.py").write_text("SEEDS = [4, 5]\n")
    file.write_text("from beside_the_sweep_file import SEEDS\n" + VALID.replace("[1, 2]", "SEEDS"))
    assert [trial.seed for trial in load_sweep(file).trials()] == [4, 5]


def test_syntax_error_of_an_imported_module_is_reported_with_its_line(file: Path) -> None:
    (file.parent / "wrong_beside_the_sweep_file.py").write_text("SEEDS = [\n")
    file.write_text("import wrong_beside_the_sweep_file\n" + VALID)
    assert "wrong_beside_the_sweep_file.py:1 is not valid Python" in message_of(file)


@pytest.mark.parametrize("line", ["import os; os.chdir('/')", "import sys; sys.path.clear()"])
@pytest.mark.parametrize("ending", ["", "1 / 0\n"], ids=["valid", "raises"])
def test_file_may_change_the_working_folder_and_sys_path(
    file: Path, monkeypatch: pytest.MonkeyPatch, line: str, ending: str
) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    file.write_text(f"{line}\n{VALID}{ending}")
    if ending:
        assert "ZeroDivisionError" in message_of(file.name)
    else:
        assert load_sweep(file.name).name == "tried"


# ---- --set --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dataset=imdb", "imdb"),
        ("dataset=owner/name:part", "owner/name:part"),
        ("model=gpt2-xl", "gpt2-xl"),
        ("optimizer=adamw", "adamw"),
        ("lr_schedule=cosine", "cosine"),
        ("context_length=64", 64),
        ("seed=0", 0),
        ("learning_rate=3e-4", 3e-4),
        ("learning_rate=1", 1.0),
        ("weight_decay=.1", 0.1),
        ("dropout=0.5", 0.5),
        ("dropout=none", None),
        ("max_train_tokens=None", None),
        ("max_train_tokens=1000", 1000),
        ("pretrained=false", False),
        ("pretrained=True", True),
    ],
)
def test_override_is_converted_to_the_type_of_its_field(file: Path, text: str, value: Any) -> None:
    file.write_text(VALID)
    field = text.partition("=")[0]
    trials = load_sweep(file, [text]).trials()
    assert all(getattr(trial, field) == value and type(getattr(trial, field)) is type(value) for trial in trials)
    assert len(trials) == (1 if field == "seed" else 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed", ["seed", "field=value"]),
        ("", ["field=value"]),
        ("=1", ["not known"]),
        ("sed=1", ["sed", "did you mean 'seed'"]),
        ("name=other", ["name", "not known"]),
        ("seed=", ["seed", "whole number"]),
        ("seed=1.0", ["seed", "'1.0'", "whole number"]),
        ("seed=none", ["seed", "whole number"]),
        ("batch_size=4,8", ["--set takes one value; expected tune.grid_search([4, 8]) in the sweep file for several"]),
        ("learning_rate=[1e-4, 1e-3]", ["expected tune.grid_search([0.0001, 0.001]) in the sweep file"]),
        ("lr=1e-4", ["lr", "did you mean 'learning_rate'"]),
        ("seed=" + "9" * 5000, ["seed", "whole number"]),
        ("batch_size=[8]", ["batch_size", "'[8]'", "tune.grid_search([8])"]),
        ("learning_rate=nan", ["learning_rate", "finite"]),
        ("learning_rate=1e999", ["learning_rate", "finite"]),
        ("pretrained=1", ["pretrained", "True or False"]),
        ("model=gpt2-larg", ["model", "did you mean 'gpt2-large'"]),
        ("model=" + "x" * 300, ["model", "expected one of"]),
        ("optimizer=adam", ["optimizer", "did you mean 'adamw'"]),
        ("context_length=2048", ["context_length", "at most 1024"]),
    ],
)
def test_invalid_override_is_reported(file: Path, text: str, words: list[str]) -> None:
    file.write_text(VALID)
    message = message_of(file, (text,))
    assert all(word in message for word in words) and len(message) < 1000


def test_all_problems_of_overrides_are_reported_before_the_file_is_run(file: Path) -> None:
    message = message_of(file, ("epochs=0", "seeds=1", "seed"))
    assert "the command line has 3 mistakes" in message and "no sweep file" not in message


def test_last_of_two_overrides_wins(file: Path) -> None:
    file.write_text(VALID)
    assert [trial.epochs for trial in load_sweep(file, ["epochs=4", "epochs=5"]).trials()] == [5, 5]


# ---- any values at all --------------------------------------------------------------------------------------------


def mostly_valid(valid: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw a valid value, or any Python literal one time in eight."""
    return st.integers(0, 7).flatmap(lambda number: valid if number else LITERALS)


NUMBERS = st.integers() | st.integers(1, 2000) | st.floats() | st.floats(0, 1) | st.booleans()
LITERALS = st.recursive(
    NUMBERS
    | st.none()
    | st.text(max_size=10)
    | st.binary(max_size=4)
    | st.sampled_from(["gpt2", "adamw", "a/b", ".."]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.just("grid_search"), inner) | st.tuples(inner),
    max_leaves=6,
)
VALID_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "dataset": st.sampled_from(["pydocs", "wikitext2", "imdb", "owner/name:part"]),
    "model": st.sampled_from(["gpt2", "gpt2-nano", "owner/name"]),
    "optimizer": st.sampled_from(["adamw", "adafactor"]),
    "lr_schedule": st.sampled_from(["linear", "cosine", "constant"]),
    "pretrained": st.booleans(),
    "learning_rate": st.floats(1e-9, 1),
    **dict.fromkeys(("warmup_ratio", "weight_decay", "max_grad_norm", "dropout"), st.floats(0, 0.99)),
    **dict.fromkeys(("context_length", "batch_size", "epochs", "seed", "evals_per_epoch"), st.integers(2, 1000)),
    "max_train_tokens": st.none() | st.integers(1, 10**9),
    "max_documents": st.none() | st.integers(2, 10**9),
    "documents": st.none() | st.sampled_from(["line", "blank-line", "file"]),
    **dict.fromkeys(("text_column", "train_split", "validation_split"), st.none() | st.just("name")),
}
GRIDS = {
    field: mostly_valid(valid | st.lists(mostly_valid(valid), max_size=4).map(lambda values: {"grid_search": values}))
    for field, valid in VALID_VALUES.items()
}
SPACES = st.fixed_dictionaries({}, optional=GRIDS)
OPTIONS = st.fixed_dictionaries(
    {"name": mostly_valid(st.just("any")), "space": mostly_valid(SPACES | st.lists(SPACES, min_size=1, max_size=3))},
    optional={
        "max_failures": mostly_valid(st.integers(0, 9)),
        "precision": mostly_valid(st.just("auto")),
        "unknown": LITERALS,
    },
)


@given(OPTIONS)
@example({"name": "any", "space": {"learning_rate": 10**400}})
@example({"name": "any", "space": {"model": "x" * 300}})
@settings(derandomize=True, deadline=None, max_examples=200)
def test_file_of_any_literals_gives_a_sweep_or_one_message(
    tmp_path_factory: pytest.TempPathFactory, options: dict[str, Any]
) -> None:
    assert list(VALID_VALUES.keys() ^ TrialConfig().as_dict().keys()) == []
    file = tmp_path_factory.getbasetemp() / "any_literals.py"
    given_options = ", ".join(f"{name}={value!r}" for name, value in options.items())
    file.write_text(f"from math import inf, nan\nfrom raylm import Sweep\nsweep = Sweep({given_options})\n")
    try:
        sweep = load_sweep(file)
    except UserError as error:
        assert "has no `sweep`" not in str(error)
        assert "raises" not in str(error), f"not reported as a problem of a field: {error}"
    else:
        assert isinstance(sweep, Sweep) and 1 <= len(sweep.trials()) <= sweep.grid_size
        assert all(math.isfinite(trial.learning_rate) and len(trial.id) == 10 for trial in sweep.trials())
