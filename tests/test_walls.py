"""The walls of the house: what may import what, what an import costs, and what every file owes its reader."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raylm
from raylm.loading import load_sweep
from raylm.reference import load_reference

ROOT = Path(__file__).resolve().parent.parent
MODULES = {path.stem: path for path in sorted((ROOT / "raylm").glob("*.py"))}
SWEEPS = ROOT / "sweeps"

DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
ORDER = re.findall(r"^\| `(\w+)` \|", DESIGN, re.MULTILINE)
"""A module imports only from those before it. `__init__` stands for the package's own names."""

MOST_LINES = 300
MOST_IMPORT_SECONDS = 0.1
"""Of the processor."""


def run(code: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def imported(module: str) -> Iterator[str]:
    """Dotted names of all that a module imports, within functions and for type checking too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(module: str) -> set[str]:
    """The modules of the package that a module imports from."""
    names = [name.split(".") for name in imported(module) if name.split(".")[0] == "raylm"]
    return {name[1] if len(name) > 1 and name[1] in MODULES else "__init__" for name in names}


# ---- which way the imports run ------------------------------------------------------------------------------------


def test_every_module_has_its_place_in_the_list_of_the_docs() -> None:
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_modules_below_it(module: str) -> None:
    above = [name for name in own_imports(module) if ORDER.index(name) >= ORDER.index(module)]
    assert above == []


@pytest.mark.parametrize(
    ("package", "users"),
    [
        (
            "ray",
            ["board", "bridge", "cluster", "metrics", "peers", "reporter", "search", "submit", "trainable", "tuner"],
        ),
        ("optuna", ["importance", "search"]),
        ("wandb", ["wandb_runs"]),
        ("tensorboardX", ["trackers"]),
        ("mlflow", ["trackers"]),
        ("trackio", ["trackers"]),
    ],
)
def test_only_these_modules_import(package: str, users: list[str]) -> None:
    assert [module for module in MODULES if any(name.split(".")[0] == package for name in imported(module))] == users


HEAVY = ("torch", "ray", "transformers", "datasets", "optuna")


LIGHT = [
    "",
    ".config",
    ".loading",
    ".results",
    ".analysis",
    ".for_scripts",
    ".lineup",
    ".report",
    ".hardware",
    ".plan",
    ".console",
    ".page",
    ".dashboard",
    ".launch",
    ".cli",
]


@pytest.mark.parametrize("name", LIGHT)
def test_an_import_brings_neither_torch_nor_ray_nor_optuna(name: str) -> None:
    loaded = run(f"import sys, raylm{name}\nprint(*(name for name in {HEAVY} if name in sys.modules))")
    assert loaded == ""


def test_the_package_itself_is_imported_with_the_standard_library_alone() -> None:
    loaded = run("import sys\nbefore = set(sys.modules)\nimport raylm\nprint(*(set(sys.modules) - before))")
    roots = {name.split(".")[0] for name in loaded.split()}
    assert roots - sys.stdlib_module_names == {"raylm"}


def test_importing_the_package_takes_milliseconds() -> None:
    code = "import time\nbefore = time.process_time()\nimport raylm\nprint(time.process_time() - before)"
    assert min(float(run(code)) for _ in range(5)) < MOST_IMPORT_SECONDS


# ---- what every file owes its reader ------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_its_job_and_can_be_held(module: str) -> None:
    source = MODULES[module].read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring and len(docstring.splitlines()[0]) >= 20
    assert len(source.splitlines()) <= MOST_LINES


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[(\d[^]]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == raylm.__version__


def test_every_public_name_is_there() -> None:
    assert sorted(raylm.__all__) == raylm.__all__ and all(hasattr(raylm, name) for name in raylm.__all__)


# ---- the sweeps that come with it ---------------------------------------------------------------------------------

TRIALS = {
    "imdb_grid.py": 8,
    "quickstart.py": 6,
    "reference_table.py": 21,
    "wikitext103_grid.py": 12,
    "wikitext2_grid.py": 13,
}

REFERENCE_ROWS = [
    ("wikitext2", 256, "gpt2", 8),
    ("wikitext2", 256, "gpt2", 16),
    ("wikitext2", 512, "gpt2", 8),
    ("wikitext2", 1024, "gpt2", 8),
    ("wikitext2", 256, "gpt2-medium", 8),
    ("wikitext2", 512, "gpt2-medium", 8),
    ("wikitext2", 1024, "gpt2-medium", 8),
    ("wikitext2", 256, "gpt2-large", 8),
    ("wikitext2", 512, "gpt2-large", 8),
    ("wikitext2", 1024, "gpt2-large", 8),
    ("wikitext2", 256, "gpt2-xl", 8),
    ("wikitext2", 512, "gpt2-xl", 8),
    ("wikitext2", 1024, "gpt2-xl", 8),
    ("imdb", 256, "gpt2", 8),
    ("imdb", 256, "gpt2", 16),
    ("imdb", 256, "gpt2", 64),
    ("imdb", 512, "gpt2", 64),
    ("imdb", 1024, "gpt2", 64),
    ("imdb", 256, "gpt2-medium", 64),
    ("imdb", 512, "gpt2-medium", 64),
    ("imdb", 1024, "gpt2-medium", 64),
]


def test_every_sweep_is_counted_here() -> None:
    assert sorted(path.name for path in SWEEPS.glob("*.py")) == sorted([*TRIALS, "imdb_optuna.py"])


def test_the_search_that_is_shipped_begins_with_rows_of_the_reference() -> None:
    sweep = load_sweep(SWEEPS / "imdb_optuna.py")
    assert isinstance(sweep.space, dict)
    fixed = {"dataset": sweep.space["dataset"]}
    rows = {(row.dataset, row.model, row.context_length, row.batch_size) for row in load_reference().rows}
    keys = ("dataset", "model", "context_length", "batch_size")
    assert {tuple({**fixed, **point}[key] for key in keys) for point in sweep.points_to_evaluate} <= rows


@pytest.mark.parametrize(("name", "trials"), TRIALS.items())
def test_a_sweep_has_its_trials(name: str, trials: int) -> None:
    sweep = load_sweep(SWEEPS / name)
    assert len(sweep.trials()) == trials
    assert sweep.name == name.removesuffix(".py").replace("_", "-")


def test_the_reference_sweep_has_the_rows_of_the_reference_table_in_its_order() -> None:
    trials = load_sweep(SWEEPS / "reference_table.py").trials()
    assert [(one.dataset, one.context_length, one.model, one.batch_size) for one in trials] == REFERENCE_ROWS
    assert {(one.epochs, one.optimizer, one.learning_rate, one.pretrained) for one in trials} == (
        {(1, "adafactor", 5e-5, True)}
    )
