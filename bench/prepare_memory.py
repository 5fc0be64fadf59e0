"""Peak memory and time of preparing a corpus of text of several shapes, each in a process of its own.

    python bench/prepare_memory.py --mb 500 --shape trailing one-line

The text is Python's documentation, repeated; the tokenizer is that of `gpt2-nano`, trained on it. The peak is the
largest resident memory of the process, imports included, by `getrusage`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

TEXT = "\n".join(" ".join(topics[name].split()) for name in sorted(topics))
WORDS = TEXT.split()
PROGRAM = """
import json, resource, sys, time
from raylm.config.dataset import DatasetSpec
from raylm.data.preparation import prepare
started = time.perf_counter()
corpus = prepare(DatasetSpec(sys.argv[1], documents=sys.argv[2] or None), None, "gpt2-nano")
seconds = time.perf_counter() - started
tokens = len(corpus.train.tokens) + len(corpus.validation.tokens)
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds, tokens]))
"""


def lines(end: str) -> Callable[[], Iterator[str]]:
    """Return a function that yields lines of twelve words with this end, without end."""

    def generate() -> Iterator[str]:
        number = 0
        while True:
            for start in range(0, len(WORDS) - 12, 12):
                yield f" {number} {' '.join(WORDS[start : start + 12])}{end}"
                number += 1

    return generate


def one_line() -> Iterator[str]:
    """Yield a line, and then words of another one, without end."""
    yield "The first line.\n"
    while True:
        yield f"{TEXT.replace(chr(10), ' ')} "


def books() -> Iterator[str]:
    """Yield documents of about 20 MB, one a line, without end."""
    while True:
        yield " ".join([TEXT.replace("\n", " ")] * 50) + "\n"


SHAPES: dict[str, tuple[Callable[[], Iterator[str]], str]] = {
    "lines": (lines("\n"), ""),
    "trailing": (lines(" \n"), ""),
    "one-line": (one_line, ""),
    "documents": (lines("\n"), "line"),
    "books": (books, "line"),
}
"""Text and `documents` of each shape."""


def write_text(file: Path, shape: str, megabytes: int) -> None:
    """Write a text of a shape; its last line is short, so that it can be divided."""
    size = 0
    with file.open("w", encoding="utf-8") as opened:
        for text in SHAPES[shape][0]():
            size += opened.write(text)
            if size >= megabytes * 1_000_000:
                break
        opened.write("\nThe last line.\n")


def main() -> None:
    """Measure and print a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=500, help="size of each text")
    parser.add_argument("--shape", nargs="*", choices=SHAPES, default=list(SHAPES))
    args = parser.parse_args()
    print(f"{'shape':<10} {'MB':>5} {'peak MiB':>9} {'seconds':>8} {'tokens':>12}")
    for shape in args.shape:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "text.txt")
            write_text(file, shape, args.mb)
            command = [sys.executable, "-c", PROGRAM, str(file), SHAPES[shape][1]]
            env = {**os.environ, "RAYLM_CACHE": folder, "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
        peak, seconds, tokens = json.loads(done.stdout)
        print(f"{shape:<10} {args.mb:>5} {peak:>9,.0f} {seconds:>8.1f} {tokens:>12,}", flush=True)


if __name__ == "__main__":
    main()
