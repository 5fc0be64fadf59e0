"""Benchmark the cost of trackers without network: the same sweep with none of them and with all, in turns.

    python bench/trackers.py [--rounds 3] [--trials 4] [--tokens 100000]

wandb is online with a key and MLflow has a tracking server, both at a port where nothing listens; trackio writes to the
disk, and TensorBoard's event files are written in both cases. Two trials run at a time. Compared are the whole command,
from the start of Ray to the end of the trackers, and the time from the first trial's start to the last one's end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from pydoc_data.topics import topics

from watched import time_sweep, write_dataset

UNREACHABLE = "http://127.0.0.1:9"
NONE: tuple[str, ...] = ("--wandb", "disabled")
ALL: tuple[str, ...] = ("--wandb", "online", "--mlflow", UNREACHABLE, "--trackio", "bench")
SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="bench", space={{
    "dataset": {dataset!r}, "model": "gpt2-nano", "context_length": 128, "max_train_tokens": {tokens},
    "evals_per_epoch": 2, "learning_rate": tune.grid_search([number * 1e-4 for number in range(1, {trials} + 1)]),
}}, resources=Resources(cpus=1))
"""


def measure(folder: Path, file: Path, trials: int, trackers: tuple[str, ...]) -> tuple[float, float]:
    """Return the seconds of the command, and from the first trial's start to the last one's end."""
    command = [sys.executable, "-m", "raylm.sweep", str(file), "--storage", str(folder), "--address", "local"]
    env = {"WANDB_BASE_URL": UNREACHABLE, "WANDB_API_KEY": "0" * 40, "TRACKIO_DIR": str(folder / "trackio")}
    timing = time_sweep([*command, *trackers], trials, {**os.environ, **env})
    return timing.total_seconds, timing.done[-1] - timing.started[0]


def main() -> None:
    """Run the rounds and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=100_000)
    args = parser.parse_args()
    measured: dict[str, list[tuple[float, float]]] = {"none": [], "all": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset, file = write_dataset(folder / "text", validation=topics["while"]), folder / "bench.py"
        file.write_text(SWEEP.format(dataset=str(dataset), tokens=args.tokens, trials=args.trials))
        for number in range(args.rounds):
            for which, trackers in (("none", NONE), ("all", ALL))[:: 1 if number % 2 == 0 else -1]:
                measured[which].append(measure(folder / f"{which}-{number}", file, args.trials, trackers))
                print(which, *(f"{value:.1f}" for value in measured[which][-1]), file=sys.stderr)
    summary = {}
    for index, label in enumerate(("command", "trials")):
        ratios = [every[index] / none[index] for every, none in zip(measured["all"], measured["none"], strict=True)]
        medians = {which: statistics.median(pair[index] for pair in rounds) for which, rounds in measured.items()}
        summary[label] = {**medians, "ratio": statistics.median(ratios), "ratios": ratios}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
