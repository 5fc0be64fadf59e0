"""What trackers cost a sweep while the network is away: the same sweep with none of them and with all, in turns.

    python bench/trackers.py [--rounds 3] [--trials 4] [--tokens 100000]

wandb is online with a key, MLflow has a tracking server, both at a port where nothing listens; trackio writes to its
disk, TensorBoard's event files are written in both. Two trials run at a time. What is compared is the whole command,
with the start of Ray and the end of the trackers, and the time from the first trial's start to the last one's end.
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

AWAY = "http://127.0.0.1:9"
NONE: tuple[str, ...] = ("--wandb", "disabled")
ALL: tuple[str, ...] = ("--wandb", "online", "--mlflow", AWAY, "--trackio", "bench")
SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="bench", space={{
    "dataset": {dataset!r}, "model": "gpt2-nano", "context_length": 128, "max_train_tokens": {tokens},
    "evals_per_epoch": 2, "learning_rate": tune.grid_search([number * 1e-4 for number in range(1, {trials} + 1)]),
}}, resources=Resources(cpus=1))
"""


def seconds(folder: Path, file: Path, trials: int, trackers: tuple[str, ...]) -> tuple[float, float]:
    """Of the command, and from the first trial's start to the last one's end."""
    command = [sys.executable, "-m", "raylm.sweep", str(file), "--storage", str(folder), "--address", "local"]
    away = {"WANDB_BASE_URL": AWAY, "WANDB_API_KEY": "0" * 40, "TRACKIO_DIR": str(folder / "trackio")}
    found = time_sweep([*command, *trackers], trials, {**os.environ, **away})
    return found.total_seconds, found.done[-1] - found.started[0]


def main() -> None:
    """Runs the rounds and prints a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=100_000)
    asked = parser.parse_args()
    taken: dict[str, list[tuple[float, float]]] = {"none": [], "all": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset, file = write_dataset(folder / "text", validation=topics["while"]), folder / "bench.py"
        file.write_text(SWEEP.format(dataset=str(dataset), tokens=asked.tokens, trials=asked.trials))
        for number in range(asked.rounds):
            for which, trackers in (("none", NONE), ("all", ALL))[:: 1 if number % 2 == 0 else -1]:
                taken[which].append(seconds(folder / f"{which}-{number}", file, asked.trials, trackers))
                print(which, *(f"{one:.1f}" for one in taken[which][-1]), file=sys.stderr)
    told = {}
    for place, what in enumerate(("command", "trials")):
        ratios = [one[place] / other[place] for one, other in zip(taken["all"], taken["none"], strict=True)]
        medians = {which: statistics.median(one[place] for one in rounds) for which, rounds in taken.items()}
        told[what] = {**medians, "ratio": statistics.median(ratios), "ratios": ratios}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
