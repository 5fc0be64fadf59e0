"""Stages of a command from its start to its prompt, which `raylm run -v` shows with their times."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

STAT_FILE = Path("/proc/self/stat")
log = logging.getLogger("raylm.stages")
log.propagate = False  # a program that shows other log messages has not asked for these


def mark_stage(name: str, reached_at: float | None = None) -> None:
    """Log that a stage has been reached.

    Args:
        name: the stage.
        reached_at: time at which another process has reached it, in seconds since 1970; None: this process, now.
    """
    log.info(name, extra={"reached_at": reached_at})


def process_started_at() -> float:
    """Return the time at which this process was started, in seconds since 1970, by the clock of `time.time`.

    psutil's is that of a boot time in whole seconds.
    """
    if not STAT_FILE.exists():
        return float(psutil.Process().create_time())
    ticks = int(STAT_FILE.read_text().rpartition(")")[2].split()[19])  # since boot
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age


@contextlib.contextmanager
def show_stages(write: Callable[[str], None]) -> Iterator[None]:
    """Write a line for each stage: seconds since this process has started, and its processor time so far."""
    handler = _StageHandler(write)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(logging.NOTSET)
        log.removeHandler(handler)


class _StageHandler(logging.Handler):
    """Handler that formats stages relative to the start of this process."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write
        self._started_at = process_started_at()

    def emit(self, record: logging.LogRecord) -> None:
        reached_at = vars(record).get("reached_at")
        seconds = (reached_at or record.created) - self._started_at
        own = "" if reached_at else f", {time.process_time():.2f} s of processor"
        self._write(f"stage {seconds:6.2f} s{own}: {record.getMessage()}")
