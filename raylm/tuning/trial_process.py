"""Process of a trial: memory watchdog, leak check, environment, and capture of its output.

A trial that exhausts the machine's memory exits before Ray kills one of its processes, and with it the whole sweep.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import os
import platform
import sys
import threading
from collections.abc import Callable, Iterator

import psutil

from raylm.errors import WorkError, escape_control_chars
from raylm.machine import machine_memory
from raylm.planning.memory import RUNTIME_BASELINE_BYTES
from raylm.results.storage import Storage
from raylm.training import device
from raylm.units import GIB

POLL_SECONDS = 0.1
WARN_FRACTION = 0.80
"""Fraction of the machine's memory in use above which a process that exceeds its share reports it."""
KILL_FRACTION = 0.92
"""Fraction above which such a process exits: at 0.95, Ray kills a process, and Tune fails with it."""
MAX_LEAK_FRACTION = 0.25
"""Maximum growth of a process between trials, as a fraction of its share; then a fresh process replaces it."""

WORKER_ENVIRONMENT = {
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "3600",  # Tune waits for a trial that it stops in the middle of a step
    "TOKENIZERS_PARALLELISM": "false",
    "THP_MEM_ALLOC_ENABLE": "1",  # torch asks for huge pages for tensors on a CPU: a quarter of the time of faults
}
"""Settings of libraries in the processes of trials; those of the process's own environment take precedence."""
LAUNCHER_VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING", "ACCELERATE_USE_DEEPSPEED"),
)
"""Variables that torchrun or Accelerate may have left. With those of FSDP, ranks would load no weights
(transformers/distributed/fsdp.py). raylm passes ranks as arguments."""


class MemoryWatchdog(threading.Thread):
    """Thread that watches the memory of its process and machine.

    If the machine's memory is short and this process exceeds its share, it reports that, and exits the process soon
    after: only its trial fails, with a known reason.
    """

    def __init__(self, memory_fraction: float, on_low_memory: Callable[[str], None], device_type: str = "cpu") -> None:
        """Create the thread; `start` starts it.

        Args:
            device_type: type of the device that the process computes on.
            memory_fraction: share of this process, as a fraction of the machine's memory, 0 to 1.
            on_low_memory: called once with a message, before the process exits.
        """
        super().__init__(daemon=True)
        self._memory_fraction, self._on_low_memory, self._device_type = memory_fraction, on_low_memory, device_type
        self._warned = False
        self._stop_event = threading.Event()

    def stop(self) -> None:
        """Stop watching."""
        self._stop_event.set()

    def run(self) -> None:
        """Watch until stopped."""
        while not self._stop_event.wait(POLL_SECONDS):
            used, total = machine_memory()
            if used < WARN_FRACTION * total:
                continue
            own = device.machine_bytes_in_use(self._device_type)
            if own < self._memory_fraction * total:
                continue
            if not self._warned:
                self._on_low_memory(f"out of memory: it took {own / GIB:.1f} GiB of {total / GIB:.1f}")
                self._warned = True
            if used > KILL_FRACTION * total:
                os._exit(1)


class LeakCheck:
    """Memory growth of a process between trials: a worker that runs many keeps what any of them leaked."""

    def __init__(self) -> None:
        self._baseline_bytes: int | None = None
        self.leaked_bytes = 0
        """Growth at the last measurement."""

    def measure(self, measure_device: Callable[[], int] = lambda: 0) -> None:
        """Free memory, then measure.

        Args:
            measure_device: function that returns the bytes that the process holds on a GPU.
        """
        gc.collect()
        device.trim_heap()  # freed memory is no leak
        now = psutil.Process().memory_info().rss + measure_device()
        self._baseline_bytes = now if self._baseline_bytes is None else min(now, self._baseline_bytes)
        self.leaked_bytes = now - self._baseline_bytes


def set_worker_environment() -> None:
    """Set `WORKER_ENVIRONMENT` and remove `LAUNCHER_VARIABLES` in this process."""
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)


def prepare_gpu(share: float) -> None:
    """Set the allocator's options and this process's share of its GPU; no-op if the share is 0.

    Raises:
        WorkError: if torch cannot use the GPU, as on a node that was added after the launch had started.
    """
    if share:
        report = device.inspect_gpus()
        if report.problem:
            raise WorkError(f"torch cannot use the GPU of {platform.node()}: {report.problem}")
        if report.device == "cuda":
            device.set_allocator_options()
        device.limit_gpu_memory(min(share, 1.0), RUNTIME_BASELINE_BYTES[report.device], report.device)


@contextlib.contextmanager
def capture_output(storage: Storage, name: str) -> Iterator[None]:
    """Redirect all output of this process to a file: of Python, of libraries in C, of child processes.

    If the file cannot be opened, output is not redirected: a log is not worth failing a trial.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(storage.open_append(name))
        except OSError:
            yield
            return
        print(f"raylm: the following output is in {storage.uri_of(name)}")
        _flush_streams()
        saved = [(number, os.dup(number)) for number in (1, 2)]
        try:
            for number, _ in saved:
                os.dup2(file, number)
            yield
        finally:
            _flush_streams()
            for number, descriptor in saved:
                os.dup2(descriptor, number)
                os.close(descriptor)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # a full disk
            stream.flush()


def print_timestamped(text: str) -> None:
    """Print a line with the time in UTC, unless the disk is full."""
    now = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")
    with contextlib.suppress(OSError):
        print(f"[{now}] {escape_control_chars(text)}", flush=True)
