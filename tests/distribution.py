"""Distribution of tests over processes: all tests of the shared Ray in one, and the tests of any other file in one.

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
"""Files with the longest tests without Ray, longest first."""
RAY_TESTS_FILE = pytest.StashKey[Path]()
"""File in which a worker names the tests that share a Ray, for the process that distributes them."""


class RayScheduling(LoadScopeScheduling):
    """Scheduler with one group for all tests that share a Ray."""

    _ray_tests: frozenset[str] | None = None

    def _split_scope(self, nodeid: str) -> str:
        if self._ray_tests is None:
            self._ray_tests = frozenset(json.loads(self.config.stash[RAY_TESTS_FILE].read_text()))
        return "ray" if nodeid in self._ray_tests else nodeid.split("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that use Ray, and sort the tests: on the shared Ray, with one of their own, long files, others."""
    shared = [item for item in items if "ray_address" in getattr(item, "fixturenames", ())]
    for item in shared:
        item.add_marker("ray")
    ray_tests = {item.nodeid for item in shared}
    order = {name: number for number, name in enumerate(LONG_FILES)}

    def position(item: pytest.Item) -> int:
        if item.get_closest_marker("ray"):
            return -2 if item.nodeid in ray_tests else -1
        return order.get(item.path.stem, len(order))

    items.sort(key=position)
    if file := getattr(config, "workerinput", {}).get("ray_tests_file"):
        temporary = Path(f"{file}.{os.getpid()}")
        temporary.write_text(json.dumps(sorted(ray_tests)))
        temporary.replace(file)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass a worker the file for the names of tests that share a Ray."""
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
