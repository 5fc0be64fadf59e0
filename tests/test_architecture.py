"""The architecture: which room may import which, what an import costs, and what every file owes its reader."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raylm

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "raylm"
PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
"""File of each module, by dotted name."""

LAYERS = (
    {"errors", "files", "imports", "numerics", "shadowing", "stages", "units"},
    {"machine"},
    {"config"},
    {"results", "data"},
    {"events", "planning", "training", "spot_notices"},
    {"report", "tuning"},
    {"monitor"},
    {"runner"},
    {"raylm"},
    {"cli"},
    {"sweep"},
)
"""Rooms from the ground up. A room imports from lower layers only; rooms of one layer do not know each other."""

MAX_MODULES = 16
"""Modules of a room."""
MAX_CHAIN = 14
"""Modules of the longest chain of imports, imports inside functions included."""
MAX_LINES = 300
MAX_IMPORT_SECONDS = 0.1
"""Processor time of `import raylm`."""


def room(module: str) -> str:
    """Return the room of a module: the folder it is in, or its own name at the top of the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Return the dotted names that a module imports, in functions and for type checking too."""

    def names() -> Iterator[str]:
        for node in ast.walk(ast.parse(PATHS[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module} has a relative import"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    return frozenset(names())


@functools.cache
def own_imports(module: str) -> frozenset[str]:
    """Return the modules of the package that a module imports."""
    found = set()
    for name in imports(module):
        if name.split(".")[0] == "raylm":
            found.add(name if name in PATHS else name.rpartition(".")[0])
    return frozenset(found - {module})


def users(package: str) -> set[str]:
    """Return the modules that import a package."""
    return {module for module in PATHS if any(name.split(".")[0] == package for name in imports(module))}


# ---- rooms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", PATHS)
def test_module_imports_only_lower_rooms(module: str) -> None:
    level = {name: number for number, names in enumerate(LAYERS) for name in names}
    own = room(module)
    higher = [other for other in own_imports(module) if room(other) != own and level[room(other)] >= level[own]]
    assert higher == []


def test_imports_have_no_circle_and_no_long_chain() -> None:
    def chain(module: str, below: tuple[str, ...]) -> tuple[str, ...]:
        assert module not in below, f"circle: {' -> '.join((*below, module))}"
        if module not in longest:
            chains = [chain(other, (*below, module)) for other in own_imports(module)]
            longest[module] = (module, *max(chains, key=len, default=()))
        return longest[module]

    longest: dict[str, tuple[str, ...]] = {}
    found = max((chain(module, ()) for module in PATHS), key=len)
    assert len(found) <= MAX_CHAIN, " -> ".join(found)


def test_rooms_are_small() -> None:
    folders = {path.parent for path in PATHS.values()}
    sizes = {folder: len([path for path in folder.glob("*.py") if path.stem != "__init__"]) for folder in folders}
    assert {folder.name: size for folder, size in sizes.items() if size > MAX_MODULES} == {}


@pytest.mark.parametrize(
    "module", [name for name, path in PATHS.items() if path.stem == "__init__" and name != "raylm"]
)
def test_package_init_holds_a_docstring_only(module: str) -> None:
    (docstring,) = ast.parse(PATHS[module].read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)


# ---- the three walls ----------------------------------------------------------------------------------------------


def test_only_tuning_imports_ray() -> None:
    assert {room(module) for module in users("ray")} <= {"tuning", "cli"}
    assert [module for module in users("ray") if room(module) == "cli"] in ([], ["raylm.cli.doctor"])


def test_only_training_and_tuning_import_torch() -> None:
    assert {room(module) for module in users("torch")} <= {"training", "tuning", "cli"}
    assert [module for module in users("torch") if room(module) == "cli"] in ([], ["raylm.cli.doctor"])


def test_config_and_results_import_neither_torch_nor_ray_nor_numpy() -> None:
    heavy = users("torch") | users("ray") | users("numpy")
    assert [module for module in heavy if room(module) in ("config", "results")] == []


@pytest.mark.parametrize(
    ("package", "modules"),
    [
        ("optuna", {"report.importance", "tuning.sampling.points", "tuning.search"}),
        ("wandb", {"monitor.trackers.wandb_client"}),
        ("tensorboardX", {"monitor.trackers.clients"}),
        ("mlflow", {"monitor.trackers.clients"}),
        ("trackio", {"monitor.trackers.clients"}),
    ],
)
def test_client_library_is_imported_in_one_place(package: str, modules: set[str]) -> None:
    assert users(package) == {f"raylm.{module}" for module in modules}


# ---- the cost of an import ----------------------------------------------------------------------------------------

HEAVY = ("torch", "ray", "transformers", "datasets", "optuna")
LIGHT = [
    "raylm",
    "raylm.config.sweep_file",
    "raylm.results.folder",
    "raylm.planning.plan",
    "raylm.planning.throughput",
    "raylm.report.formats",
    "raylm.report.json_output",
    "raylm.report.analysis",
    "raylm.report.html",
    "raylm.monitor.console",
    "raylm.monitor.dashboard",
    "raylm.tuning.trial_queue",
    "raylm.runner",
    "raylm.cli.app",
]
"""Modules that a message, a plan or a report needs, in the order of their weight."""
IMPORT_ALL = f"""
import importlib, sys
for module in sys.argv[1:]:
    importlib.import_module(module)
    print(module, *(name for name in {HEAVY} if name in sys.modules))
"""


def run(*arguments: str) -> str:
    """Return what a fresh Python prints."""
    command = [sys.executable, "-c", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT)
    return done.stdout.strip()


def test_light_modules_import_neither_torch_nor_ray_nor_optuna() -> None:
    assert run(IMPORT_ALL, *LIGHT).splitlines() == LIGHT


def test_launch_and_coordinator_leave_torch_to_the_processes_of_trials() -> None:
    modules = ["raylm.tuning.launch", "raylm.tuning.coordinator"]
    assert [line.split()[1:] for line in run(IMPORT_ALL, *modules).splitlines()] == [["ray"], ["ray"]]


def test_package_imports_the_standard_library_alone() -> None:
    loaded = run("import sys\nbefore = set(sys.modules)\nimport raylm\nprint(*(set(sys.modules) - before))")
    roots = {name.split(".")[0] for name in loaded.split()}
    assert roots - sys.stdlib_module_names == {"raylm"}


def test_package_import_costs_milliseconds_of_the_processor() -> None:
    code = "import time\nbefore = time.process_time()\nimport raylm\nprint(time.process_time() - before)"
    assert min(float(run(code)) for _ in range(5)) < MAX_IMPORT_SECONDS


# ---- what every file owes its reader ------------------------------------------------------------------------------

QUESTION_WORDS = ("What", "Whether", "How", "Where", "Who", "Whose", "Whom", "Why", "Which", "When", "Told", "See")
SHORT_DOCSTRING = 20
"""Characters below which a module's first line cannot say its job."""


def docstrings(module: str) -> Iterator[str]:
    """Yield all docstrings of a module: its own, of classes and functions, and of attributes."""
    for node in ast.walk(ast.parse(PATHS[module].read_text(encoding="utf-8"))):
        for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


@pytest.mark.parametrize("module", PATHS)
def test_module_states_its_job_and_fits_in_a_file(module: str) -> None:
    source = PATHS[module].read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source))
    assert docstring and len(docstring.splitlines()[0]) >= SHORT_DOCSTRING
    assert len(source.splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", PATHS)
def test_no_docstring_begins_with_a_question_word(module: str) -> None:
    assert [text for text in docstrings(module) if text.split()[0].rstrip(",.:") in QUESTION_WORDS] == []


def test_the_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[(\d[^]]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == raylm.__version__


def test_the_public_names_are_sorted_and_exist() -> None:
    assert sorted(raylm.__all__) == raylm.__all__ and all(hasattr(raylm, name) for name in raylm.__all__)


# ---- the walks in docs/design.md ----------------------------------------------------------------------------------

DESIGN = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
WALKS = re.findall(r"^### .*\n\n((?:\d\. .*\n)+)", DESIGN.partition("## Five walks")[2], re.MULTILINE)


def defined_names(path: Path) -> set[str]:
    """Return the names of functions, classes and methods that a file defines."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef)}
    return names


def test_five_walks_lead_through_places_that_exist() -> None:
    assert len(WALKS) == 5
    for walk in WALKS:
        places = re.findall(r"^\d\. `([\w/]+\.py)`, `([\w.]+)`", walk, re.MULTILINE)
        assert 5 <= len(places) <= 8 and len(places) == len(walk.splitlines())
        for file, name in places:
            assert name in defined_names(PACKAGE / file), f"{file} has no {name}"


def test_every_room_is_described_in_the_docs() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)` \|", DESIGN, re.MULTILINE)) == rooms
