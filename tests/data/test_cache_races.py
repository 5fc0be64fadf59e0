"""Caches under sixteen processes that prepare one dataset at once, some of them killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from conftest import SMALL_HUB_DATASET, serve_hub, write_small_hub

from raylm.data import preparation

PROCESSES = 16
KILLS = 10
MAX_SECONDS_BETWEEN_KILLS = 0.6
LONG_PATH_BYTES = 300
HUB_DELAY_SECONDS = 0.2
PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "race_to_prepare.py"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with Python's documentation in two files, some 450 kB."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_text("".join(topics[name] for name in sorted(topics)))
    (folder / "validation.txt").write_text(topics["while"] + topics["break"] + topics["for"])
    assert (folder / "train.txt").stat().st_size > 300_000
    return folder


def race(
    dataset: str, cache: Path, seed: int, step: str = "write", environment: Mapping[str, str] | None = None
) -> list[tuple[int, str]]:
    """Return the exit code and answer of each process; with a negative seed, of a single undisturbed one.

    Args:
        step: step of the process that is killed first: `read` (fetch the text) or `write` (the tokens).
    """
    temporary = cache.with_name("tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    folders = {"RAYLM_CACHE": str(cache), "TMPDIR": str(temporary), "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **folders, **(environment or {})}
    options = [seed, step, PROCESSES, KILLS, MAX_SECONDS_BETWEEN_KILLS]
    command = [sys.executable, str(PROGRAM), dataset, str(temporary / "worker"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return [(code, answer) for code, answer in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Answer of a single process with a fresh cache."""
    return prepare_alone(str(text), tmp_path_factory.mktemp("undisturbed") / "cache")


def prepare_alone(dataset: str, cache: Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the answer of a single, undisturbed process."""
    ((code, answer),) = race(dataset, cache, seed=-1, environment=environment)
    assert code == 0, answer
    corpus: dict[str, Any] = json.loads(answer)
    assert corpus["train"][0] > 100_000
    return corpus


def assert_survivors_answer(answers: list[tuple[int, str]], expected: dict[str, Any]) -> None:
    """Assert that some processes were killed and that all others gave the expected answer."""
    assert {code for code, _ in answers} == {0, -9}, answers
    assert sum(code == 0 for code, _ in answers) >= PROCESSES - KILLS
    assert all(json.loads(answer) == expected for code, answer in answers if code == 0)


def assert_cached_once(cache: Path, expected: dict[str, Any]) -> None:
    """Assert that the cache holds the whole corpus and nothing of an interrupted attempt."""
    entry = f"{expected['fingerprint']}-v{preparation.FORMAT_VERSION}"
    names = {path.name for path in (cache / "corpora").iterdir()}
    assert names - {f"{entry}.lock"} == {entry}
    files = {str(path.relative_to(cache / "corpora" / entry)) for path in (cache / "corpora" / entry).rglob("*.*")}
    assert files == {"corpus.json", "train.npy", "validation.npy", *(f"tokenizer/{name}" for name in expected["files"])}


@pytest.mark.parametrize(
    ("seed", "has_long_path"), [(0, False), (1, False), pytest.param(2, True, marks=pytest.mark.nightly)]
)
def test_processes_killed_while_preparing_leave_a_whole_corpus(
    text: Path, undisturbed: dict[str, Any], tmp_path: Path, seed: int, has_long_path: bool
) -> None:
    cache = tmp_path / "cache"
    while has_long_path and len(bytes(cache)) < LONG_PATH_BYTES:
        cache = cache / ("a rather long name of a folder " * 2)

    assert_survivors_answer(race(str(text), cache, seed), undisturbed)
    assert prepare_alone(str(text), cache) == undisturbed
    assert {path.name for path in cache.iterdir()} == {"corpora"}
    assert_cached_once(cache, undisturbed)


def test_processes_killed_while_fetching_leave_whole_caches(tmp_path: Path) -> None:
    rows = [line for name in sorted(topics) for line in topics[name].splitlines() if line.strip()]
    root = write_small_hub(tmp_path / "root", rows, topics["while"].splitlines())
    cache = tmp_path / "cache"
    with serve_hub("--root", str(root), "--delay", str(HUB_DELAY_SECONDS)) as endpoint:
        fetch = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        other_home = {**fetch, "HF_HOME": str(tmp_path / "other")}
        undisturbed = prepare_alone(SMALL_HUB_DATASET, tmp_path / "undisturbed" / "cache", other_home)
        assert_survivors_answer(race(SMALL_HUB_DATASET, cache, 3, "read", fetch), undisturbed)
    assert prepare_alone(SMALL_HUB_DATASET, cache, fetch) == undisturbed  # the hub is gone
    assert_cached_once(cache, undisturbed)

    shutil.rmtree(cache / "corpora")  # the files fetched from the hub are whole, too
    assert prepare_alone(SMALL_HUB_DATASET, cache, fetch) == undisturbed
