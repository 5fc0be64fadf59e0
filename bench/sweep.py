"""Benchmark the overhead of a sweep: seconds per trial beside its steps, and the fraction of slot time spent in steps.

    python bench/sweep.py [--trials 20] [--tokens 100000] [--slots 2] [--many 0]

Two sweeps of `gpt2-nano` run on the text of Python's documentation. The first has one slot and short trials with a few
words of validation text: the time between the ends of two trials minus that of their steps is the overhead of a warm
worker, including loading the model and writing its checkpoint. The second has trials of the given length on all slots.
With `--many`, there is one sweep, of so many trials of one step: seconds per trial, and the memory of the command, by
quarter.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

from watched import SweepTiming, time_sweep, write_dataset

SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="bench", space={{
    "dataset": {dataset!r}, "model": "gpt2-nano", "context_length": 128, "max_train_tokens": {tokens},
    "learning_rate": tune.grid_search([number * 1e-4 for number in range(1, {trials} + 1)]),
}}, resources=Resources(cpus=1))
"""


def run_sweep(folder: Path, dataset: Path, trials: int, tokens: int, slots: int) -> tuple[SweepTiming, float]:
    """Return the times of a sweep, and the seconds of all optimizer steps."""
    file = folder / "bench.py"
    file.write_text(SWEEP.format(dataset=str(dataset), tokens=tokens, trials=trials))
    command = [sys.executable, "-m", "raylm.sweep", str(file), "--storage", str(folder)]
    command += ["--address", "local", "--max-concurrent", str(slots)]
    timing = time_sweep(command, trials)
    with (folder / "bench" / "results.csv").open() as rows:
        return timing, sum(float(row["training_seconds"]) for row in csv.DictReader(rows))


def measure_overhead(folder: Path) -> float:
    """Return the overhead of a trial in a warm worker, in seconds."""
    trials, dataset = 12, write_dataset(folder / "text", validation="A few words.")
    timing, step_seconds = run_sweep(folder, dataset, trials, 5_000, 1)
    ends = timing.done
    return (ends[-1] - ends[0]) / (trials - 1) - step_seconds / trials


def measure_busy_fraction(folder: Path, trials: int, tokens: int, slots: int) -> tuple[float, float]:
    """Return the fraction of slot time spent in steps, and the mean step seconds of a trial."""
    dataset = write_dataset(folder / "text", validation=topics["while"])
    timing, step_seconds = run_sweep(folder, dataset, trials, tokens, slots)
    return step_seconds / (slots * (timing.done[-1] - timing.started[0])), step_seconds / trials


def measure_many(folder: Path, trials: int, slots: int) -> dict[str, list[float]]:
    """Return seconds per trial, and the command's memory in MiB, in each quarter of many trials of one step."""
    dataset = write_dataset(folder / "text", validation="A few words.")
    timing, _ = run_sweep(folder, dataset, trials, 128, slots)
    bounds = [trials * quarter // 4 for quarter in range(5)]
    ends = [timing.started[0], *timing.done]
    seconds = [(ends[stop] - ends[start]) / (stop - start) for start, stop in itertools.pairwise(bounds)]
    return {"seconds_per_trial": seconds, "driver_mib": [timing.driver_mib[stop - 1] for stop in bounds[1:]]}


def main() -> None:
    """Run the sweeps and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--many", type=int, default=0)
    args = parser.parse_args()
    if args.many:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({"trials": args.many, **measure_many(Path(folder), args.many, args.slots)}))
        return
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        overhead = measure_overhead(Path(first))
        fraction, seconds = measure_busy_fraction(Path(second), args.trials, args.tokens, args.slots)
    print(json.dumps({"overhead_seconds": overhead, "busy_fraction": fraction, "step_seconds_per_trial": seconds}))


if __name__ == "__main__":
    main()
