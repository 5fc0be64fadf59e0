"""Measure on a GPU, in one hour, what a machine without one cannot show; each part also runs alone.

    python bench/first_hour.py --device cuda                     # all parts, in the order in which they tell most
    python bench/first_hour.py --device cuda --minutes 8         # as many cases as fit, after those that are done
    python bench/first_hour.py --device cuda --part step memory  # these parts
    python bench/first_hour.py --list                            # parts, and the time that each is planned to take
    python bench/first_hour.py --device cpu --tiny               # the same code with tiny sizes, in seconds

It needs no network and no weights: models have random weights, and the text is this repository's documentation. A JSON
file, and tables in Markdown beside it, are written after every measurement. Started again, it goes on with the cases
that are missing for this card, these versions and this code. A case that fails, or takes three times as long as
planned, is recorded with its message, and the next one runs. Its packages: torch, transformers, numpy, safetensors,
msgspec and psutil; triton, liger-kernel and ray where they are installed. A case that lacks a package is skipped, and
tried again by the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from first_hour_parts.plan import PARTS, Case, Part, describe, find_part
from first_hour_parts.records import Records, describe_environment, list_rows

BENCH = Path(__file__).resolve().parent
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""Variables of the measuring process, unless they are set: no network, and the allocator's options of a trial."""
START_SECONDS = 300
"""Limit of the time that a process takes to start and to find the GPU."""

Todo = list[tuple[Part, Case]]


@dataclass
class Worker:
    """Process that measures one case after another."""

    options: dict[str, Any]

    def __post_init__(self) -> None:
        path = [str(BENCH), str(BENCH.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "first_hour_parts.worker", json.dumps(self.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(path)},
            start_new_session=True,  # processes that a measurement starts end with it
        )
        self._first = self._read(START_SECONDS)
        self.environment: dict[str, Any] = self._first.get("environment", {})

    @property
    def problem(self) -> str:
        """Reason for which it cannot measure; empty if it can."""
        unknown = "" if self.environment else "the measuring process ended at its start; its message is above"
        return str(self._first.get("problem", unknown))

    def measure(self, part: Part, case: Case, limit: float) -> dict[str, Any]:
        """Return the measurement of a case, failed if the process ends or reaches the limit in seconds."""
        started = time.perf_counter()
        assert self._process.stdin is not None
        print(json.dumps([part.name, case.name]), file=self._process.stdin, flush=True)
        if result := self._read(limit):
            if result.pop("broken", False):
                self.close()
            return result
        self.close()
        seconds = time.perf_counter() - started
        code = self._process.returncode
        message = f"stopped after {seconds:.0f} s" if seconds >= limit else f"the process ended with exit code {code}"
        return {"part": part.name, "case": case.name, "status": "failed", "message": message, "seconds": seconds}

    @property
    def has_failed(self) -> bool:
        """True if the process has ended, or its GPU cannot be used any more."""
        return self._process.poll() is not None

    def _read(self, limit: float) -> dict[str, Any]:
        """Return the next event, or an empty one if the process has ended; it is killed after the limit in seconds."""
        assert self._process.stdout is not None
        timer = threading.Timer(limit, self.close)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        return json.loads(line) if line.endswith("\n") else {}

    def close(self) -> None:
        """Kill the process and those that it has started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def run_cases(todo: Todo, records: Records, options: dict[str, Any], *, retry: bool, minutes: float) -> bool:
    """Measure the cases that are missing, as far as they fit into the time; return whether none is left."""
    deadline = time.monotonic() + minutes * 60
    is_complete = True
    worker = _start(options)
    print(f"{worker.environment['device']}: {describe_environment(worker.environment)}", flush=True)
    try:
        environment = records.number_of(worker.environment)
        for part, case in todo:
            earlier = records.find(environment, part.name, case.name)
            if earlier is not None and (earlier["status"] == "done" or (earlier["status"] == "failed" and not retry)):
                continue
            if time.monotonic() + case.seconds > deadline:
                is_complete = False
                continue
            if worker.has_failed:
                worker = _start(options)
            result = worker.measure(part, case, limit=60 + 3 * case.seconds)
            records.add({"environment": environment, **result, "planned": case.seconds, "time": int(time.time())})
            print(_to_lines(result, case), flush=True)
    finally:
        worker.close()
    return is_complete


def _start(options: dict[str, Any]) -> Worker:
    """Return a new process that measures, which has found the device."""
    worker = Worker(options)
    if worker.problem:
        worker.close()
        print(f"--device {options['device']}: {worker.problem}", file=sys.stderr)
        raise SystemExit(2)
    return worker


def _to_lines(result: dict[str, Any], case: Case) -> str:
    """Return a measurement as lines of the terminal."""
    lines = [f"{result['part']}: {case.name}: {result['status']} in {result['seconds']:.0f} s"]
    for name, values in list_rows(result):
        words = [f"{key} {f'{value:.5g}' if isinstance(value, float) else value}" for key, value in values.items()]
        lines.append(f"  {name}: {', '.join(words)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print a line for each case; return 1 if a case of these parts has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models, few steps: to try the program")
    parser.add_argument("--part", nargs="+", metavar="PART", default=[], help="parts to measure; default: all")
    parser.add_argument("--minutes", type=float, default=60, help="start no case that would end later; default: 60")
    parser.add_argument("--retry", action="store_true", help="measure again what has failed")
    parser.add_argument("--out", type=Path, default=Path("first-hour.json"), help="JSON file; default: %(default)s")
    parser.add_argument("--list", action="store_true", help="print the parts and their planned times")
    args = parser.parse_args(arguments)
    if args.list:
        print(describe())
        return 0
    parts = [find_part(name) for name in args.part] or list(PARTS)
    todo = [(part, case) for part in parts for case in part.cases]
    options = {"device": args.device, "tiny": args.tiny}
    records = Records(args.out)
    is_complete = run_cases(todo, records, options, retry=args.retry, minutes=args.minutes)
    latest = [m for m in records.measurements if any((m["part"], m["case"]) == (p.name, c.name) for p, c in todo)]
    counts = Counter(m["status"] for m in latest)
    print(f"{args.out}, {args.out.with_suffix('.md')}: " + ", ".join(f"{n} {status}" for status, n in counts.items()))
    if not is_complete:
        print("the time is over before the last case; the same command goes on with the next one")
    return int(any(m["status"] == "failed" for m in latest))


if __name__ == "__main__":
    sys.exit(main())
