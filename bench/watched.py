"""What the benchmarks of whole sweeps share: a text to train on, and when the trials of a command start and end."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

EVENT_LINE = re.compile(r"\S+  (started|done)\b")
"""How a line begins in which `raylm run` tells of a trial where there is no terminal."""


@dataclass
class SweepTiming:
    """When the trials of a command started and were done, and when it ended, in seconds from its start."""

    started: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    total_seconds: float = 0.0


def time_sweep(command: Sequence[str], num_trials: int, env: Mapping[str, str] | None = None) -> SweepTiming:
    """Runs a command of so many trials to its end.

    Raises:
        SystemExit: if not all of them were done.
    """
    found, begun = SweepTiming(), time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if event := EVENT_LINE.match(line):
                getattr(found, event[1]).append(time.perf_counter() - begun)
    found.total_seconds = time.perf_counter() - begun
    if process.returncode or len(found.done) != num_trials:
        done = f"{len(found.done)} of {num_trials} trials done"
        raise SystemExit(f"the sweep did not end well: exit code {process.returncode}, {done}")
    return found


def write_dataset(folder: Path, *, validation: str) -> Path:
    """A dataset in a folder that is made: the documentation of Python."""
    folder.mkdir()
    (folder / "train.txt").write_text("\n".join(topics[name] for name in sorted(topics)))
    (folder / "validation.txt").write_text(validation)
    return folder
