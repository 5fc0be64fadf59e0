"""Sixteen processes that prepare one dataset at once, some killed: the caches hold it once, whole, or not at all."""

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

pytestmark = pytest.mark.slow

PROCESSES = 16
DEATHS = 10
MOST_SECONDS_BETWEEN = 0.6
LONG_PATH_BYTES = 300
SECONDS_BEFORE_AN_ANSWER = 0.2

RACE = f"""
import hashlib, json, os, pathlib, random, signal, sys, time
import datasets
import numpy as np
from raylm import corpus, data
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

dataset, worker, seed, step = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
save, read = np.save, corpus.read


def slow_save(*given, **named):  # so that it can be killed while it writes
    save(*given, **named)
    worker.write_text(str(os.getpid()))
    time.sleep(0.3)


def noted_read(source):  # whoever fetches and reads the text, all others waiting
    worker.write_text(str(os.getpid()))
    return read(source)


def prepared(answer):
    if seed >= 0 and step == "write":
        np.save = slow_save
    elif seed >= 0:
        corpus.read = noted_read
    made = data.prepare(dataset, None, "gpt2-nano")
    kept = dict(fingerprint=made.fingerprint, files=sorted(made.tokenizer_files), vocabulary=made.vocabulary)
    for name, split in made.splits():
        kept[name] = [len(split.tokens), split.words, str(split.tokens.dtype), hashlib.sha256(split.tokens).hexdigest()]
    os.write(answer, (json.dumps(kept) + "\\n").encode())


def start():  # a fork: all begin at once, and no time goes into imports
    reading, writing = os.pipe()
    if process := os.fork():
        os.close(writing)
        return process, reading
    try:
        prepared(writing)
    except BaseException as error:
        os.write(writing, repr(error).encode())
        os._exit(1)
    os._exit(0)


def answer(process, reading):
    with os.fdopen(reading) as told:
        text = told.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), text


if seed < 0:
    print(json.dumps([answer(*start())]))
    sys.exit()
drawn = random.Random(seed)
running = [start() for _ in range({PROCESSES})]
processes = [process for process, _ in running]
while not (worker.exists() and worker.read_text()):
    time.sleep(0.01)
for death in range({DEATHS}):
    if death or step == "read":  # the first to write is killed at once
        time.sleep(drawn.uniform(0, {MOST_SECONDS_BETWEEN}))
    working = int(worker.read_text() or 0)
    killed = working if working in processes and (not death or drawn.random() < 0.5) else drawn.choice(processes)
    os.kill(killed, signal.SIGKILL)
print(json.dumps([answer(*one) for one in running]))
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's documentation as a folder with two files, some 450 kB."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_text("".join(topics[name] for name in sorted(topics)))
    (folder / "validation.txt").write_text(topics["while"] + topics["break"] + topics["for"])
    assert (folder / "train.txt").stat().st_size > 300_000
    return folder


def race(
    dataset: str, cache: Path, seed: int, step: str = "write", environment: Mapping[str, str] | None = None
) -> list[tuple[int, str]]:
    """Exit code and answer of each process; with a negative seed, of one that nothing disturbs.

    Args:
        step: what the process is at that is killed first: `read` (fetch the text) or `write` (the tokens).
    """
    temporary = cache.with_name("tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    places = {"RAYLM_CACHE": str(cache), "TMPDIR": str(temporary), "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **places, **(environment or {})}
    command = [sys.executable, "-c", RACE, dataset, str(temporary / "worker"), str(seed), step]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return [(code, answer) for code, answer in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a preparation in a fresh cache gives."""
    return alone(str(text), tmp_path_factory.mktemp("undisturbed") / "cache")


def alone(dataset: str, cache: Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What one process comes to that nothing disturbs."""
    ((code, answer),) = race(dataset, cache, seed=-1, environment=environment)
    assert code == 0, answer
    found: dict[str, Any] = json.loads(answer)
    assert found["train"][0] > 100_000
    return found


def assert_the_living_have(answers: list[tuple[int, str]], expected: dict[str, Any]) -> None:
    """Those that were not killed all came to this; some were killed."""
    assert {code for code, _ in answers} == {0, -9}, answers
    assert sum(code == 0 for code, _ in answers) >= PROCESSES - DEATHS
    assert all(json.loads(answer) == expected for code, answer in answers if code == 0)


def assert_holds_once(cache: Path, expected: dict[str, Any]) -> None:
    """The corpus and no remains of another try at it."""
    entry = expected["fingerprint"]
    left = {path.name for path in (cache / "corpora").iterdir()}
    assert left - {f"{entry}.lock"} == {entry}
    files = {str(path.relative_to(cache / "corpora" / entry)) for path in (cache / "corpora" / entry).rglob("*.*")}
    assert files == {"corpus.json", "train.npy", "validation.npy", *(f"tokenizer/{name}" for name in expected["files"])}


@pytest.mark.parametrize(("seed", "long"), [(0, False), (1, False), (2, True)])
def test_processes_that_are_killed_while_they_prepare_leave_a_whole_corpus(
    text: Path, undisturbed: dict[str, Any], tmp_path: Path, seed: int, long: bool
) -> None:
    cache = tmp_path / "cache"
    while long and len(bytes(cache)) < LONG_PATH_BYTES:
        cache = cache / ("a rather long name of a folder " * 2)

    assert_the_living_have(race(str(text), cache, seed), undisturbed)
    assert alone(str(text), cache) == undisturbed
    assert {path.name for path in cache.iterdir()} == {"corpora"}
    assert_holds_once(cache, undisturbed)


def test_processes_that_are_killed_while_they_fetch_leave_whole_caches(tmp_path: Path) -> None:
    rows = [line for name in sorted(topics) for line in topics[name].splitlines() if line.strip()]
    root = write_small_hub(tmp_path / "root", rows, topics["while"].splitlines())
    with serve_hub("--root", str(root), "--delay", str(SECONDS_BEFORE_AN_ANSWER)) as endpoint:
        fetch = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        undisturbed = alone(
            SMALL_HUB_DATASET, tmp_path / "undisturbed" / "cache", {**fetch, "HF_HOME": str(tmp_path / "other")}
        )
        assert_the_living_have(race(SMALL_HUB_DATASET, tmp_path / "cache", 3, "read", fetch), undisturbed)
    assert alone(SMALL_HUB_DATASET, tmp_path / "cache", fetch) == undisturbed  # of a hub that is gone
    assert_holds_once(tmp_path / "cache", undisturbed)

    shutil.rmtree(tmp_path / "cache" / "corpora")  # what was fetched is whole too
    assert alone(SMALL_HUB_DATASET, tmp_path / "cache", fetch) == undisturbed
