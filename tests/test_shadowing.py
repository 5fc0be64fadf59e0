"""Files beside a sweep that would be imported instead of a package."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raylm import UserError, load_sweep, shadowing

SWEEP = "from raylm import Sweep\n\nsweep = Sweep(name='names', space={'context_length': 64})\n"


@pytest.mark.parametrize("name", ["datasets", "secrets", "queue", "torch", "wandb", "typing"])
@pytest.mark.parametrize("is_package", [False, True])
def test_file_with_the_name_of_a_package_is_refused(tmp_path: Path, name: str, is_package: bool) -> None:
    file = tmp_path / name / "__init__.py" if is_package else tmp_path / f"{name}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text("NAMES = ['me/txt']\n")
    (tmp_path / "sweep.py").write_text(SWEEP)
    with pytest.raises(
        UserError, match=rf"{name}(\.py)? stands in the way of the (package|standard module) {name}; rename"
    ):
        load_sweep(tmp_path / "sweep.py")


def test_own_modules_and_folders_of_tools_are_accepted(tmp_path: Path) -> None:
    for name in ("utils.py", "my_datasets.py", "test.py", "data.py", "models.py", "datasets.txt"):
        (tmp_path / name).write_text("")
    for name in ("wandb", "datasets", "mlruns"):  # as W&B makes its own
        (tmp_path / name).mkdir()
    (tmp_path / "sweep.py").write_text(SWEEP)
    assert load_sweep(tmp_path / "sweep.py").name == "names"


def test_working_folder_is_checked_before_anything_is_imported(tmp_path: Path) -> None:
    (tmp_path / "secrets.py").write_text("KEY = ''\n")
    (tmp_path / "sweep.py").write_text(SWEEP)
    command = [sys.executable, "-m", "raylm.sweep", "sweep.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        r"raylm: \S*secrets.py stands in the way of the standard module secrets; rename it\n", done.stderr
    )


def test_working_folder_is_checked_under_the_command_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "queue.py").write_text("")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "sweep.py").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"queue.py stands in the way of the standard module queue"):
        load_sweep(Path("sweeps/sweep.py"))


def test_installations_and_checkouts_stand_in_no_way() -> None:
    assert shadowing.find_shadowing_file(str(Path(pytest.__file__).parents[1])) is None
    assert shadowing.find_shadowing_file(str(Path(__file__).resolve().parents[1])) is None


def test_packages_that_raylm_requires_are_known() -> None:
    requirements = importlib.metadata.requires("raylm") or []
    names = {
        re.split(r"[^A-Za-z0-9_.-]", text)[0].lower().replace("_", "-") for text in requirements if "extra" not in text
    }
    modules = importlib.metadata.packages_distributions()
    required = {m for m, dists in modules.items() if any(d.lower().replace("_", "-") in names for d in dists)}
    auxiliary = {"mpl_toolkits", "torchgen", "functorch", "pylab"}
    assert {name for name in required if not name.startswith("_")} - auxiliary <= shadowing.PACKAGES
