"""Many processes that prepare one dataset at once, killed at random: the cache holds it once, whole, or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROCESSES = 16
DEATHS = 10
MOST_SECONDS_BETWEEN = 0.6
LONG_PATH_BYTES = 300

RACE = f"""
import hashlib, json, os, pathlib, random, signal, sys, time
import numpy as np
from raylm import data
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

dataset, writer, seed = sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3])
save = np.save


def slow_save(*given, **named):  # so that it can be killed while it writes
    save(*given, **named)
    writer.write_text(str(os.getpid()))
    time.sleep(0.3)


def prepared(answer):
    np.save = slow_save if seed >= 0 else save
    corpus = data.prepare(dataset, None, "gpt2-nano")
    kept = dict(fingerprint=corpus.fingerprint, files=sorted(corpus.tokenizer_files), vocabulary=corpus.vocabulary)
    for name, split in corpus.splits():
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
while not (writer.exists() and writer.read_text()):
    time.sleep(0.01)
os.kill(int(writer.read_text()), signal.SIGKILL)  # the first to write; from then on, at random
for _ in range({DEATHS} - 1):
    time.sleep(drawn.uniform(0, {MOST_SECONDS_BETWEEN}))
    writing = int(writer.read_text() or 0)
    killed = writing if writing in processes and drawn.random() < 0.5 else drawn.choice(processes)
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


def race(text: Path, cache: Path, seed: int) -> list[tuple[int, str]]:
    """Exit code and answer of each process; with a negative seed, of one that nothing disturbs."""
    temporary = cache.with_name("tmp")
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, "RAYLM_CACHE": str(cache), "TMPDIR": str(temporary), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", RACE, str(text), str(temporary / "writer"), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return [(code, answer) for code, answer in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a preparation in a fresh cache gives."""
    ((code, answer),) = race(text, tmp_path_factory.mktemp("undisturbed") / "cache", seed=-1)
    assert code == 0, answer
    found: dict[str, Any] = json.loads(answer)
    assert found["train"][0] > 100_000
    return found


@pytest.mark.parametrize(("seed", "long"), [(0, False), (1, False), (2, True)])
def test_processes_that_are_killed_while_they_prepare_leave_a_whole_corpus(
    text: Path, undisturbed: dict[str, Any], tmp_path: Path, seed: int, long: bool
) -> None:
    cache = tmp_path / "cache"
    while long and len(bytes(cache)) < LONG_PATH_BYTES:
        cache = cache / ("a rather long name of a folder " * 2)
    cache.parent.mkdir(parents=True, exist_ok=True)

    answers = race(text, cache, seed)
    assert {code for code, _ in answers} == {0, -9}, answers
    assert sum(code == 0 for code, _ in answers) >= PROCESSES - DEATHS
    assert all(json.loads(answer) == undisturbed for code, answer in answers if code == 0)

    ((code, answer),) = race(text, cache, seed=-1)
    assert code == 0, answer
    assert json.loads(answer) == undisturbed
    entry = undisturbed["fingerprint"]
    assert {path.name for path in cache.iterdir()} == {"corpora"}
    left = {path.name for path in (cache / "corpora").iterdir()}
    assert left - {f"{entry}.lock"} == {entry}
    files = {str(path.relative_to(cache / "corpora" / entry)) for path in (cache / "corpora" / entry).rglob("*.*")}
    expected = {"corpus.json", "train.npy", "validation.npy", *(f"tokenizer/{name}" for name in undisturbed["files"])}
    assert files == expected
