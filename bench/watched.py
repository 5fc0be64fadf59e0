"""Shared parts of the sweep benchmarks: a dataset, and the times of a command's trials with the command's memory."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

import psutil

EVENT_LINE = re.compile(r"\S+  (started|done)\b")
"""Start of a line in which `raylm run` reports a trial event if the output is not a terminal."""


@dataclass
class SweepTiming:
    """Times at which a command's trials started and were done, and at which it ended, in seconds from its start."""

    started: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    total_seconds: float = 0.0
    driver_mib: list[float] = field(default_factory=list)
    """Memory of the command's process when each trial was done, in MiB."""


def time_sweep(command: Sequence[str], num_trials: int, env: Mapping[str, str] | None = None) -> SweepTiming:
    """Run a command that trains `num_trials` trials and return their times.

    Raises:
        SystemExit: if not all trials are done at the end.
    """
    timing, begun = SweepTiming(), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if event := EVENT_LINE.match(line):
                getattr(timing, event[1]).append(time.perf_counter() - begun)
                if event[1] == "done":
                    timing.driver_mib.append(psutil.Process(process.pid).memory_info().rss / 2**20)
    timing.total_seconds = time.perf_counter() - begun
    if process.returncode or len(timing.done) != num_trials:
        done = f"{len(timing.done)} of {num_trials} trials done"
        raise SystemExit(f"the sweep failed: exit code {process.returncode}, {done}")
    return timing


def write_dataset(folder: Path, *, validation: str) -> Path:
    """Create a dataset folder with the documentation of Python and return it."""
    folder.mkdir()
    (folder / "train.txt").write_text("\n".join(topics[name] for name in sorted(topics)))
    (folder / "validation.txt").write_text(validation)
    return folder
