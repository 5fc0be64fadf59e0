"""Distribution of tests over processes: all tests that use Ray in one, and the tests of any other file in one.

`pytest -n 2 --dist loadscope --no-loadscope-reorder` runs them so. Groups of pytest-xdist 3.8 (`--dist loadgroup`) do
nothing with pytest 9.2, which no longer reads the attribute that they are written to.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

LONG_FILES = (
    "test_ray_up",
    "test_cache_races",
    "test_sources",
    "test_trackers",
    "test_tracker_failures",
    "test_ray_up_aws",
    "test_against_transformers",
    "test_distributed",
    "test_doctor",
)
"""Files with the longest tests, besides those that use Ray."""
RAY_TESTS_FILE = pytest.StashKey[Path]()
"""File in which a worker names the tests that use Ray, for the process that distributes them."""


class RayScheduling(LoadScopeScheduling):
    """Scheduler with one group for all tests that use Ray."""

    _ray_tests: frozenset[str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._ray_tests is None:
            self._ray_tests = frozenset(json.loads(self.config.stash[RAY_TESTS_FILE].read_text()))
        return "ray" if nodeid in self._ray_tests else nodeid.split("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that use Ray, and sort the tests: with Ray, of long files, others."""
    for item in items:
        if "ray_address" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
    ray_tests = {item.nodeid for item in items if item.get_closest_marker("ray")}
    order = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: -1 if item.nodeid in ray_tests else order.get(item.path.stem, len(order)))
    if file := getattr(config, "workerinput", {}).get("ray_tests_file"):
        temporary = Path(f"{file}.{os.getpid()}")
        temporary.write_text(json.dumps(sorted(ray_tests)))
        temporary.replace(file)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker where to write the names of tests that use Ray."""
    stash = node.config.stash
    if RAY_TESTS_FILE not in stash:
        stash[RAY_TESTS_FILE] = Path(tempfile.mkdtemp(prefix="raylm-tests-")) / "ray-tests.json"
    node.workerinput["ray_tests_file"] = str(stash[RAY_TESTS_FILE])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RayScheduling:
    """Return the scheduler of all runs with several processes."""
    return RayScheduling(config, log)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the file of `pytest_configure_node`."""
    if file := config.stash.get(RAY_TESTS_FILE, None):
        shutil.rmtree(file.parent, ignore_errors=True)
