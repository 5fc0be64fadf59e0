"""Counts of what a process asks of its GPU: by the fake GPU's library, or by torch's profiler on a real one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from gpu.fake_gpu import LIBRARY_VARIABLE

IS_FAKE = LIBRARY_VARIABLE in os.environ
"""True if this process runs on the fake GPU, which computes no numbers."""
_SYNCHRONIZES = "called a synchronizing CUDA operation"
"""Part of the warning of torch's sync debug mode."""


@dataclass
class Counts:
    """Work that a process gave to its GPU; zero until the context of `count` exits."""

    kernels: int = 0
    """Kernels, memsets, and nodes of graphs."""
    waits: int = 0
    """Times that the host waited for the GPU, a blocking copy counted as one."""
    graph_launches: int | None = None
    """Launches of CUDA graphs; None on a real GPU."""
    cpu_seconds: float = 0.0
    """Processor time of this process."""
    names: dict[str, int] = field(default_factory=dict)
    """All counts of the fake GPU by name, for messages; empty on a real one."""


@contextlib.contextmanager
def count() -> Iterator[Counts]:
    """Count until the context exits."""
    counts = Counts()
    with _count_on_fake(counts) if IS_FAKE else _count_on_real(counts):
        start = time.process_time()
        yield counts
        counts.cpu_seconds = time.process_time() - start


@contextlib.contextmanager
def _count_on_fake(counts: Counts) -> Iterator[None]:
    library = ctypes.CDLL(os.environ[LIBRARY_VARIABLE])
    library.fakegpu_reset()
    yield
    with tempfile.NamedTemporaryFile("r") as file:
        library.fakegpu_report(file.name.encode())
        lines = [line.rstrip("\n").split("\t", 1) for line in file]
    counts.names = {name: int(number) for number, name in lines}
    counts.kernels = _total(counts.names, "kernel: ")
    copies = _total(counts.names, "wait: copy ")  # followed by a synchronization if torch is to wait for their end
    counts.waits = max(copies, _total(counts.names, "wait: ") - copies)
    counts.graph_launches = counts.names.get("graph: launch", 0)


def _total(names: dict[str, int], prefix: str) -> int:
    return sum(number for name, number in names.items() if name.startswith(prefix))


@contextlib.contextmanager
def _count_on_real(counts: Counts) -> Iterator[None]:
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
                yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    counts.waits = sum(_SYNCHRONIZES in str(warning.message) for warning in caught)
    on_gpu = [event for event in profiler.events() if str(event.device_type).endswith("CUDA")]
    counts.kernels = sum(not event.name.startswith("Memcpy") for event in on_gpu)


def count_allocations() -> int:
    """Return how often torch's allocator of this process has asked the driver for memory, or grown a segment."""
    statistics = torch.cuda.memory_stats()
    return int(statistics["num_device_alloc"]) + int(statistics["reserved_bytes.all.allocated"])
