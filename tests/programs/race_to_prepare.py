"""Processes that prepare one dataset at once, some of them killed; print their exit codes and answers as JSON.

Arguments: dataset, file for the pid of the process at work, seed (negative: a single process that nothing disturbs),
step of the process killed first (`read` or `write`), number of processes, number of kills, most seconds between
two kills.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 (imported here, so that the forks begin at once)
import numpy as np
from tokenizers import ByteLevelBPETokenizer  # noqa: F401
from transformers import PreTrainedTokenizerFast  # noqa: F401

from raylm.config.dataset import DatasetSpec
from raylm.data import preparation, sources
from raylm.data.local_files import TextSplits
from raylm.data.sources import Source
from raylm.data.token_file import TokenFileWriter

dataset, worker_file, seed, step = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
num_processes, num_kills, max_seconds_between = int(sys.argv[5]), int(sys.argv[6]), float(sys.argv[7])
read_splits = sources.read_splits


class SlowTokenFileWriter(TokenFileWriter):
    """Writer that pauses at the end, so that its process can be killed while it writes."""

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        worker_file.write_text(str(os.getpid()))
        time.sleep(0.3)


def noted_read(source: Source, *, is_partial: bool = False) -> TextSplits:
    """Note the process that fetches and reads the text while all others wait."""
    worker_file.write_text(str(os.getpid()))
    return read_splits(source, is_partial=is_partial)


def prepare(answer_fd: int) -> None:
    """Prepare the dataset and write a description of the corpus."""
    if seed >= 0 and step == "write":
        preparation.TokenFileWriter = SlowTokenFileWriter  # type: ignore[attr-defined]
    elif seed >= 0:
        sources.read_splits = noted_read
    prepared = preparation.prepare(DatasetSpec(dataset), None, "gpt2-nano")
    answer: dict[str, Any] = {
        "fingerprint": prepared.fingerprint,
        "files": sorted(prepared.tokenizer_files),
        "vocab_size": prepared.vocab_size,
    }
    for name, split in prepared.splits():
        tokens = np.ascontiguousarray(split.tokens)
        answer[name] = [len(tokens), split.num_words, str(tokens.dtype), hashlib.sha256(tokens.tobytes()).hexdigest()]
    os.write(answer_fd, (json.dumps(answer) + "\n").encode())


def start() -> tuple[int, int]:
    """Fork a process that prepares; return its pid and the file descriptor of its answer."""
    read_fd, write_fd = os.pipe()
    if pid := os.fork():
        os.close(write_fd)
        return pid, read_fd
    try:
        prepare(write_fd)
    except BaseException as error:
        os.write(write_fd, repr(error).encode())
        os._exit(1)
    os._exit(0)


def wait(pid: int, read_fd: int) -> tuple[int, str]:
    """Return a process's exit code and answer."""
    with os.fdopen(read_fd) as answer:
        text = answer.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text


if seed < 0:
    print(json.dumps([wait(*start())]))
    sys.exit()
rng = random.Random(seed)
running = [start() for _ in range(num_processes)]
pids = [pid for pid, _ in running]
while not (worker_file.exists() and worker_file.read_text()):
    time.sleep(0.01)
for number in range(num_kills):
    if number or step == "read":  # the first to write is killed at once
        time.sleep(rng.uniform(0, max_seconds_between))
    worker = int(worker_file.read_text() or 0)
    victim = worker if worker in pids and (not number or rng.random() < 0.5) else rng.choice(pids)
    os.kill(victim, signal.SIGKILL)
print(json.dumps([wait(*process) for process in running]))
