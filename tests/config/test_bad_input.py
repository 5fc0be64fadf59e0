"""Whatever stands in a sweep, in its file or in what lies in its results folder: a clear refusal, or it is taken."""

from __future__ import annotations

import copy
import datetime
import json
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import find_newest_checkpoint
from ray import tune

from raylm import load_results
from raylm.config.sweep import Sweep
from raylm.config.sweep_file import load_sweep
from raylm.config.trial import Resources, TrialConfig
from raylm.config.validation import parse_overrides
from raylm.errors import SweepError, UserError
from raylm.monitor.console import Console
from raylm.planning.throughput import find_placement, placement_to_record
from raylm.results import manifest, sweep_record
from raylm.results.folder import LENGTH_EVALS_FILE, STATUS_FILE, load_row, write_final_status
from raylm.results.open_storage import open_storage
from raylm.results.progress import EvalMetrics, Progress
from raylm.results.rows import DONE, FAILED, INTERRUPTED
from raylm.results.storage import Folder
from raylm.runner import resolve_storage, run

pytestmark = pytest.mark.filterwarnings("ignore")  # what a mutated file is warned of is not of interest

FIELDS = tuple(TrialConfig().as_dict())
LONGEST_NAME_BYTES = 255
FEW_TRIALS = 200


@pytest.fixture(autouse=True)
def _nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Relative paths lead to an empty folder, which must be empty in the end."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert list((tmp_path / "here").rglob("*")) == []


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends what takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"this takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assert_readable(error: UserError) -> None:
    """A message has a line for each mistake, and nothing in it that a terminal would act on."""
    lines = str(error).splitlines()
    assert len(lines) == (1 + len(error.problems) if isinstance(error, SweepError) else 1), lines
    assert all(line.isprintable() for line in lines), lines


def assert_name_of_one_folder(name: str) -> None:
    assert len(name.encode()) <= LONGEST_NAME_BYTES
    assert name.isprintable() and not set(name) & set("/\\:\0") and ".." not in name and name[0] not in ".-"


def assert_stays_inside(sweep: Sweep) -> None:
    """The names of an accepted sweep are those of folders in its storage, and of folders in these."""
    assert_name_of_one_folder(sweep.name)
    assert resolve_storage(sweep, None) == open_storage(sweep.storage or "./runs").subfolder(sweep.name)
    if sweep.search is None and sweep.grid_size <= FEW_TRIALS:
        for trial in sweep.trials():
            assert_name_of_one_folder(trial.run_name)


def tried(make: Callable[[], Sweep]) -> Sweep | None:
    """The sweep, or None where it is refused as it must be."""
    try:
        sweep = make()
        assert_stays_inside(sweep)
    except UserError as error:
        assert_readable(error)
        return None
    return sweep


# ---- strange values -----------------------------------------------------------------------------------------------


class Strange:
    """Its `repr` would clear the screen."""

    def __repr__(self) -> str:
        return "\x1b[2J\x07\u202e\u2028"


class Silent:
    """It has no `repr`."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def deep() -> list[Any]:
    """Nested deeper than Python follows."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def endless() -> list[Any]:
    """It holds itself."""
    value: list[Any] = []
    value.append(value)
    return value


HOSTILE_NAMES = ["", " ", ".", "..", "../x", "/etc", "/etc/passwd", "../../etc/passwd", "a/b", "a/../b", "a\\b", "~"]
HOSTILE_NAMES += ["CON", "a:b", "\x1b[2J", "new\nline", "a\r", "nul\0", "\ud800", "\udcff", "\u202e", "\u2028", "\x85"]
HOSTILE_NAMES += ["😀", "ü", "x" * 300, "x" * 100_000, "s3://bucket/x", "%s{}", "gpt2", "adamw", "$HOME", "-x"]
NUMBERS: list[Any] = [True, -1, 0, 1, 2, 1.5, 1e308, 10**400, 10**5000, -(10**5000), 1j]
NUMBERS += [float("nan"), float("inf"), -float("inf"), Decimal("0.1"), Fraction(1, 3), Fraction(10**400)]
OF_NUMPY: list[Any] = [np.int64(3), np.float32("nan"), np.float16(0.5), np.bool_(True), np.str_("gpt2")]
OF_NUMPY += [np.array([1, 2]), np.array(3), np.array([]), np.array(["asha", "optuna"]), np.datetime64(0, "s")]
CONTAINERS: list[Any] = [None, [], (), {}, set(), [None], [[[[1]]]], {"a": 1}, {1: 2}, [{}], {3, 4}, b"gpt2"]
CONTAINERS += [range(3), range(2, 9), [0, 0.0, False], [1, "1"], [float("nan")] * 2, (0, 1), [{"seed": 1}], {"seed": 1}]
CONTAINERS += [endless(), deep(), datetime.date(2026, 1, 1), Path("x"), memoryview(b"x"), bytearray(3)]
OBJECTS: list[Any] = [object(), object, Strange(), Silent(), [Strange()], [Silent()], {"seed": Silent()}, len]
OBJECTS += [lambda trial: {}, Sweep, TrialConfig(), Resources(), Ellipsis, NotImplemented, TypeError("x"), tune, type]
OF_TUNE: list[Any] = [
    tune.grid_search(values) for values in ([], [1, 2], [None], ["x", 1], [np.array([1, 2])], [deep()])
]
OF_TUNE += [{"grid_search": value} for value in (3, None, "ab", {}, {"a": 1}, range(3), np.array([1, 2]), Silent())]
OF_TUNE += [tune.grid_search([inner]) for inner in (tune.grid_search([1]), tune.choice([1]))]
OF_TUNE += [
    tune.choice(values) for values in ([], [1, 2], [4, "8"], [Silent()], [Strange()], "gpt2", [np.array([1, 2])])
]
OF_TUNE += [tune.uniform(0, 1), tune.uniform(1, 0), tune.loguniform(1e-5, 1e-3), tune.quniform(0.1, 0.9, 0.1)]
OF_TUNE += [tune.randint(2, 9), tune.randint(9, 2), tune.randint(1, 10**5000), tune.qrandint(2, 8, 2)]
OF_TUNE += [tune.randn(), tune.sample_from(lambda spec: 1), tune.lograndint(1, 1000), {"grid_search": [1], "a": 1}]
STRANGE: list[Any] = [*HOSTILE_NAMES, *NUMBERS, *OF_NUMPY, *CONTAINERS, *OBJECTS, *OF_TUNE]
SHARED = frozenset(map(id, STRANGE))

GRID: dict[str, Any] = {
    "name": "tried",
    "space": {
        "dataset": "pydocs",
        "model": tune.grid_search(["gpt2", "gpt2-nano"]),
        "context_length": tune.grid_search([16, 32]),
        "learning_rate": 1e-3,
        "dropout": None,
        "epochs": 2,
        "pretrained": False,
    },
    "seeds": [0, 1],
    "scheduler": "asha",
    "time_budget_hours": 1.5,
    "precision": "auto",
    "max_failures": 1,
    "storage": "./runs",
    "resources": Resources(cpus=1),
}
UNION: dict[str, Any] = {
    "name": "tried",
    "space": [
        {"seed": 1, "dataset": "owner/name:part"},
        {"model": "owner/name", "context_length": 2048, "batch_size": tune.grid_search([4, 8])},
    ],
}
SEARCH: dict[str, Any] = {
    "name": "tried",
    "space": {
        "learning_rate": tune.loguniform(1e-5, 1e-3),
        "batch_size": tune.choice([4, 8]),
        "context_length": tune.randint(16, 65),
        "optimizer": tune.choice(["adamw", "adafactor"]),
        "epochs": 2,
    },
    "search": "optuna",
    "num_samples": 5,
    "search_seed": 1,
    "points_to_evaluate": [{"batch_size": 8}, {"learning_rate": 1e-4, "epochs": 2}],
    "scheduler": "asha",
}
VALID = {"grid": GRID, "union": UNION, "search": SEARCH}


def values_of(field: str) -> list[dict[str, Any]]:
    """A field with each strange value: as it is, and where a sweep may name several."""
    return [
        *({field: value} for value in STRANGE),
        *({field: {"grid_search": [value]}} for value in STRANGE),
        *({field: tune.choice([value])} for value in STRANGE),
    ]


def not_as_it_must_be(descriptions: Sequence[dict[str, Any]]) -> list[str]:
    """How sweeps that are neither accepted nor refused in the right way fail, each in a line."""
    failures = []
    for number, description in enumerate(descriptions):
        try:
            tried(partial(Sweep, **description))
        except Exception as error:
            failures.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
    return failures


@pytest.mark.parametrize(("valid", "option"), [(kind, name) for kind, named in VALID.items() for name in named])
def test_an_option_is_accepted_or_refused_whatever_it_is(valid: str, option: str) -> None:
    assert tried(lambda: Sweep(**VALID[valid])) is not None
    assert not_as_it_must_be([{**VALID[valid], option: value} for value in STRANGE]) == []


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_is_accepted_or_refused_whatever_it_is(field: str) -> None:
    spaces = [{"epochs": 2, "model": "owner/name", **changed} for changed in values_of(field)]
    assert not_as_it_must_be([{"name": "s", "space": space} for space in spaces]) == []
    searched = [{"learning_rate": tune.loguniform(1e-5, 1e-3), **space} for space in spaces]
    assert not_as_it_must_be([{**SEARCH, "space": space, "points_to_evaluate": []} for space in searched]) == []


@pytest.mark.parametrize("field", ["batch_size", "learning_rate", "epochs", "no such field"])
def test_a_point_to_evaluate_is_accepted_or_refused_whatever_it_is(field: str) -> None:
    assert not_as_it_must_be([{**SEARCH, "points_to_evaluate": [{field: value}]} for value in STRANGE]) == []


@pytest.mark.parametrize("domain", OF_TUNE)
def test_a_point_in_a_strange_domain_is_accepted_or_refused(domain: Any) -> None:
    space = {"learning_rate": tune.loguniform(1e-5, 1e-3), "seed": domain}
    points = [{"seed": value} for value in (1, "x", None, np.array([1, 2]), float("nan"))]
    assert not_as_it_must_be([{**SEARCH, "space": space, "points_to_evaluate": [point]} for point in points]) == []


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, 1, None, (), float("nan")], ids=lambda name: ascii(name)[:20])
def test_an_unknown_name_is_told_in_a_line_wherever_it_stands(name: Any) -> None:
    places: list[Callable[[], object]] = [
        lambda: Sweep(name="s", space={name: 1}),
        lambda: Sweep(name="s", space=[{"seed": 1}, {name: 1}]),
        partial(Sweep, **{**SEARCH, "points_to_evaluate": [{name: 1}]}),
        lambda: Sweep(name="s", space={"seed": 1}).override({name: 1}),
    ]
    if isinstance(name, str):
        unknown: dict[str, Any] = {"name": "s", "space": {"seed": 1}, name: 1}
        places += [partial(Sweep, **unknown)]
        places += [lambda: parse_overrides([f"{name}=1"], FIELDS), lambda: parse_overrides([name], FIELDS)]
    for place in places:
        with pytest.raises(SweepError) as caught:
            place()
        assert_readable(caught.value)


@pytest.mark.parametrize("field", FIELDS)
def test_an_override_is_accepted_or_refused_whatever_it_is(field: str) -> None:
    for valid in VALID.values():
        sweep, failures = Sweep(**valid), []
        for value in STRANGE:
            try:
                tried(partial(sweep.override, {field: value}))
            except Exception as error:
                failures.append(f"{type(error).__name__}: {str(error)[:200]}")
        assert failures == []


def test_very_many_seeds_are_refused_at_once() -> None:
    with within(seconds=1.0), pytest.raises(UserError):
        Sweep(name="s", space={"epochs": 1}, seeds=range(10**9))


@pytest.mark.parametrize("content", ["[]", "{", "[" * 200_000, '{"n_positions": 8}', '{"n_positions": "8"}', "\0", ""])
def test_a_hostile_folder_of_a_model_is_accepted_or_refused(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "clear\x1b[2J\nthe screen"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    tried(lambda: Sweep(name="s", space={"model": str(folder), "context_length": 16}))


# ---- any mutation of a good description ---------------------------------------------------------------------------


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in nested dicts and lists, but for what is inside a strange value."""
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    nested = [value[key] for key in keys if isinstance(value[key], (dict, list)) and id(value[key]) not in SHARED]
    return [(value, key) for key in keys] + [place for one in nested for place in places(one)]


ANY_VALUE = (
    st.sampled_from(STRANGE)
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.lists(st.integers() | st.floats() | st.text(max_size=3), max_size=3)
)
ANY_NAME = st.sampled_from([*FIELDS, *GRID, *SEARCH, *HOSTILE_NAMES]) | st.text(max_size=10)
MUTATIONS = ("replace", "remove", "rename", "add", "wrap", "grid", "choice", "repeat")


@st.composite
def mutated(draw: st.DrawFn, valid: dict[str, Any]) -> dict[str, Any]:
    """A sweep's description with up to four changes anywhere in it."""
    changed: dict[str, Any] = {
        name: copy.deepcopy(value) if isinstance(value, (dict, list)) else value for name, value in valid.items()
    }
    for _ in range(draw(st.integers(1, 4))):
        container, key = draw(st.sampled_from(places(changed) or [(changed, "name")]))
        mutation = draw(st.sampled_from(MUTATIONS))
        if mutation == "add" and isinstance(container, dict):
            container[draw(ANY_NAME)] = draw(ANY_VALUE)
        elif key not in (container if isinstance(container, dict) else range(len(container))):
            continue
        elif mutation == "remove":
            del container[key]
        elif mutation == "rename" and isinstance(container, dict):
            container[draw(ANY_NAME)] = container.pop(key)
        elif mutation == "repeat" and isinstance(container, list):
            container.append(container[key])
        elif mutation == "wrap":
            container[key] = [container[key]]
        elif mutation == "grid":
            container[key] = {"grid_search": [container[key], draw(ANY_VALUE)]}
        elif mutation == "choice":
            container[key] = tune.choice([container[key], draw(ANY_VALUE)])
        else:
            container[key] = draw(ANY_VALUE)
    return changed or {"name": "tried"}


@pytest.mark.parametrize("valid", VALID)
def test_a_mutated_sweep_is_accepted_or_refused(valid: str) -> None:
    @given(mutated(VALID[valid]), st.dictionaries(ANY_NAME, ANY_VALUE, max_size=2))
    @settings(derandomize=True, deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
    def accepted_or_refused(description: dict[str, Any], override: dict[str, Any]) -> None:
        sweep = tried(lambda: Sweep(**description))
        if sweep is not None:
            tried(lambda: sweep.override(override))

    accepted_or_refused()


@given(st.lists(st.tuples(ANY_NAME, st.text() | st.sampled_from(HOSTILE_NAMES)).map("=".join) | st.text(), max_size=4))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_any_set_on_the_command_line_is_accepted_or_refused(texts: list[str]) -> None:
    try:
        values = parse_overrides(texts, FIELDS)
    except SweepError as error:
        assert_readable(error)
    else:
        tried(lambda: Sweep(name="s", space={"epochs": 1}).override(values))


# ---- any mutation of a good file ----------------------------------------------------------------------------------

FILES = {
    "grid": """from ray import tune
from raylm import Resources, Sweep

EPOCHS = 3
sweep = Sweep(
    name="small-grid",
    space=[
        {
            "dataset": "pydocs",
            "model": tune.grid_search(["gpt2-nano", "gpt2"]),
            "context_length": tune.grid_search([16, 32]),
            "learning_rate": 1e-3,
            "epochs": EPOCHS,
        },
        {"seed": 7, "pretrained": False},
    ],
    resources=Resources(gpus=0.5, cpus=2),
    max_failures=1,
)
""",
    "search": """from ray import tune
from raylm import Sweep

space = {
    "learning_rate": tune.loguniform(1e-5, 1e-3),
    "batch_size": tune.choice([4, 8]),
    "dropout": tune.quniform(0.1, 0.5, 0.1),
    "evals_per_epoch": 9,
}
points = [{"batch_size": 4, "learning_rate": 1e-4}]
sweep = Sweep(
    name="small-search",
    space=space,
    search="optuna",
    num_samples=20,
    points_to_evaluate=points,
    scheduler="asha",
)
""",
}


@st.composite
def mutated_text(draw: st.DrawFn, text: str) -> str:
    """A file with a few of its lines or characters dropped, written twice, exchanged, or another put in."""
    by_line = draw(st.booleans())
    parts = text.splitlines(keepends=True) if by_line else list(text)
    for _ in range(draw(st.integers(1, 4))):
        one, other = (draw(st.integers(0, len(parts) - 1)) for _ in range(2))
        mutation = draw(st.sampled_from(["drop", "repeat", "swap", "put in"]))
        if mutation == "drop":
            del parts[one]
        elif mutation == "repeat":
            parts.insert(other, parts[one])
        elif mutation == "swap":
            parts[one], parts[other] = parts[other], parts[one]
        else:
            parts.insert(one, draw(st.sampled_from("0-.,:=()[]{}'\"\\#\t\0\x0c\x1b\n aé\u2028")))
    return "".join(parts)


@pytest.mark.parametrize("kind", FILES)
def test_a_mutated_file_gives_a_sweep_or_one_message(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.py"

    @given(mutated_text(FILES[kind]))
    @settings(derandomize=True, deadline=None, max_examples=400)
    def sweep_or_message(text: str) -> None:
        file.write_text(text, encoding="utf-8")
        with within(seconds=5.0):
            tried(lambda: load_sweep(file))

    file.write_text(FILES[kind])
    assert tried(lambda: load_sweep(file)) is not None
    sweep_or_message()


@pytest.mark.parametrize(
    "source",
    [
        "raise ValueError('\\x1b[2J\\nsecond line')\n",
        "raise ValueError(chr(0x2028) + chr(0xd800))\n",
        "class E(Exception):\n    def __str__(self): raise RuntimeError('no words')\nraise E\n",
        "x = '\x1b[2J' = 1\n",
        "class A:\n    def __repr__(self): raise RuntimeError('no words')\nsweep = A()\n",
        "from raylm import UserError\nraise UserError('of its own')\n",
        "import sys\nsys.path = None\n" + FILES["grid"],
        "x = " + "-" * 50_000 + "1\n",
        "x = " + "(" * 50_000 + "\n",
    ],
)
def test_a_file_that_raises_strange_things_is_told_in_a_line(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "sweep.py"
    file.write_text(source)
    tried(lambda: load_sweep(file))


@pytest.mark.parametrize("name", ["clear\x1b[2J.py", "two\nlines.py", "\ud800.py", "x" * 300, "no/such.py"])
def test_a_strange_name_of_a_file_that_is_not_there_is_told_in_a_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep(tmp_path / name)
    assert_readable(caught.value)


# ---- places that are none -----------------------------------------------------------------------------------------


def test_results_are_not_written_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for storage, name in ((tmp_path, "file"), (tmp_path / "file", "below"), (tmp_path / "file" / "further", "below")):
        with pytest.raises(UserError, match=r"cannot be written to .*--storage") as caught:
            run(Sweep(name=name, space={"seed": 1}), storage=str(storage), console=Console(quiet=True))
        assert_readable(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_a_results_folder_that_cannot_be_locked_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "s").mkdir()
    if kind == "link":
        (tmp_path / "mine").write_text("mine")
        (tmp_path / "s" / ".lock").symlink_to(tmp_path / "mine")
    else:
        (tmp_path / "s" / ".lock").mkdir()
    with pytest.raises(UserError, match=r"--storage") as caught:
        run(Sweep(name="s", space={"seed": 1}), storage=str(tmp_path), console=Console(quiet=True))
    assert_readable(caught.value)
    assert kind == "folder" or (tmp_path / "mine").read_text() == "mine"


def test_results_are_not_read_where_no_folder_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "record" / sweep_record.RECORD_FILE).mkdir(parents=True)
    for name in ("file", "file/below", "loop", "record", "nul\0", "x" * 300, "\ud800"):
        with pytest.raises(UserError) as caught:
            load_results(tmp_path / name)
        assert_readable(caught.value)


# ---- what lies in a results folder --------------------------------------------------------------------------------

TRIALS = [TrialConfig(seed=1, learning_rate=1e-3), TrialConfig(seed=2, max_train_tokens=1000)]
STEPS = 10


def save(folder: Path, number: int, *val_losses: float, of: int = 3, trial: TrialConfig = TRIALS[0]) -> Path:
    """Writes a checkpoint at the end of as many epochs as there are val losses."""
    checkpoint = folder / "launch-001" / trial.run_name / f"checkpoint_{number:06d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights %d" % number)
    progress = Progress(of * STEPS, 1, step=len(val_losses) * STEPS, curve=[(1, 5.0), (2, 4.0)])
    for epoch, loss in enumerate(val_losses, start=1):
        progress.evaluations.append(EvalMetrics(epoch, epoch * STEPS, 100 * epoch, loss + 1, loss, loss + 2))
    witness = {"trial_id": trial.id, "config": trial.as_dict(), "progress": progress.as_dict()}
    manifest.write(checkpoint, witness)
    return checkpoint


def assert_rows_or_message(folder: Path) -> None:
    try:
        found = load_results(folder)
    except UserError as error:
        assert_readable(error)
        return
    for row in found.rows:
        assert_name_of_one_folder(row.config.run_name)
    find_newest_checkpoint(folder, TRIALS[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A results folder: a trial that is done, and one that failed after its first epoch."""
    folder = tmp_path / "sweep"
    save(folder, 0, 5.0, of=2)
    save(folder, 1, 5.0, 4.0, of=2)
    save(folder, 0, 5.0, trial=TRIALS[1])
    write_final_status(Folder(folder), "launch-001", TRIALS[1], FAILED, "no memory")
    (folder / LENGTH_EVALS_FILE).write_text(json.dumps({"abc": {"64": 3.0}}))
    placement = find_placement(Resources(), "auto", "a100")
    assert placement is not None
    launch = sweep_record.LaunchRecord(
        1,
        versions={"raylm": "0"},
        slot=placement_to_record(placement),
        models=[sweep_record.ModelRecord("gpt2-nano", pretrained=True)],
        data=[sweep_record.DataRecord("pydocs", "gpt2-nano")],
    )
    sweep_record.write(
        Folder(folder),
        sweep_record.SweepRecord("sweep", TRIALS, failed_ids=frozenset([TRIALS[1].id]), launches=[launch]),
    )
    return folder


def test_the_folder_is_as_the_next_tests_take_it(folder: Path) -> None:
    assert [row.status for row in load_results(folder).rows] == [DONE, FAILED]


def test_a_record_cut_off_anywhere_is_damaged(folder: Path) -> None:
    whole = (folder / sweep_record.RECORD_FILE).read_bytes()
    for length in [*range(0, len(whole), 3), len(whole) - 1]:
        (folder / sweep_record.RECORD_FILE).write_bytes(whole[:length])
        with pytest.raises(UserError, match="is damaged") as caught:
            load_results(folder)
        assert_readable(caught.value)


def test_a_manifest_cut_off_anywhere_makes_its_checkpoint_not_count(folder: Path) -> None:
    trial_folder = folder / "launch-001" / TRIALS[0].run_name
    older, newer = sorted(trial_folder.glob("checkpoint_*"))
    whole = (newer / manifest.MANIFEST_FILE).read_bytes()
    for length in range(len(whole)):
        (newer / manifest.MANIFEST_FILE).write_bytes(whole[:length])
        if length % 20 == 0:
            row = load_row(Folder(folder), TRIALS[0])
            assert (
                row.status == INTERRUPTED
                and row.latest_checkpoint is not None
                and folder / row.latest_checkpoint.folder == older
            )
            assert find_newest_checkpoint(folder, TRIALS[0]) == older


def test_an_ending_cut_off_anywhere_leaves_its_trial_interrupted(folder: Path) -> None:
    path = folder / "launch-001" / TRIALS[1].run_name / STATUS_FILE
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        row = load_row(Folder(folder), TRIALS[1])
        assert (row.status, row.reason) == (INTERRUPTED, "")


def file_in(folder: Path, name: str) -> Path:
    return next(path for path in sorted(folder.rglob(name)))


WRITTEN = [sweep_record.RECORD_FILE, manifest.MANIFEST_FILE, STATUS_FILE, LENGTH_EVALS_FILE]


@pytest.mark.parametrize("name", WRITTEN)
def test_random_bytes_in_a_file_give_rows_or_one_message(folder: Path, name: str) -> None:
    path, drawn = file_in(folder, name), random.Random(0)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(drawn.randint(1, 3)):
            damaged[drawn.randrange(len(damaged))] = drawn.choice([drawn.randrange(256), *b'0e"{}[],:-'])
        path.write_bytes(damaged)
        assert_rows_or_message(folder)


STRANGE_JSON: list[Any] = [None, True, -1, 1.5, 10**400, float("nan"), float("inf"), "", "\0", "../../x", "\x1b[2J\n"]
STRANGE_JSON += ["\ud800", "x" * 300, [], ["x"], [None], {}, {"x": 1}]


@pytest.mark.parametrize("name", WRITTEN)
def test_any_other_value_in_a_file_gives_rows_or_one_message(folder: Path, name: str) -> None:
    path = file_in(folder, name)
    whole, failures = json.loads(path.read_text()), set()
    for number in range(len(places(whole))):
        for value in [*STRANGE_JSON, "removed"]:
            changed = copy.deepcopy(whole)
            container, key = places(changed)[number]
            if value == "removed":
                del container[key]
            else:
                container[key] = value
            path.write_text(json.dumps(changed))
            try:
                assert_rows_or_message(folder)
            except Exception as error:
                failures.add(f"{key}={value!r:.20}: {type(error).__name__}: {str(error)[:100]}")
    assert sorted(failures) == []


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"a":' * 200_000, b"9" * 5000, b"\xff\xfe{}", b"\xef\xbb\xbf{}"])
def test_a_strange_file_gives_rows_or_one_message(folder: Path, name: str, content: bytes) -> None:
    file_in(folder, name).write_bytes(content)
    assert_rows_or_message(folder)
