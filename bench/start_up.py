"""Benchmark the time from a command to its first step, and from its last trial to the prompt, stage by stage.

    python bench/start_up.py [--repeats 5]

Each repeat is `raylm run -v` of a sweep with two trials of `gpt2-nano`, a few steps each, on Python's documentation.
A first one, which is not counted, fills the caches. For each stage: the median of the seconds since the command, their
minimum and maximum, and the median of the processor seconds of the command's own process.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from pydoc_data.topics import topics

from watched import write_dataset

SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="start", space={{
    "dataset": {dataset!r}, "model": "gpt2-nano", "context_length": 128, "max_train_tokens": 4096,
    "learning_rate": tune.grid_search([1e-4, 2e-4]),
}}, resources=Resources(gpus=0, cpus=1))
"""
STAGE_LINE = re.compile(r"stage +(\d+\.\d+) s(?:, (\d+\.\d+) s of processor)?: (.*)")
TRIAL_ID = re.compile(r"trial [0-9a-f]{10}")


def run_command(file: Path, storage: Path) -> list[tuple[str, float, float | None]]:
    """Return the stages of one command: name, seconds, and processor seconds of the command itself if it made them."""
    command = [sys.executable, "-m", "raylm.sweep", str(file), "--storage", str(storage), "--address", "local", "-v"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the sweep failed:\n{done.stdout}\n{done.stderr}")
    stages, num_seen = [], defaultdict[str, int](int)
    for seconds, processor, name in (
        match.groups() for match in map(STAGE_LINE.match, done.stdout.splitlines()) if match
    ):
        name = TRIAL_ID.sub("trial", name)
        num_seen[name] += 1
        name = f"{name} ({num_seen[name]})" if name.startswith("trial") else name
        stages.append((name, float(seconds), float(processor) if processor else None))
    return stages


def main() -> None:
    """Run the repeats and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    seconds, processor = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "start.py"
        file.write_text(SWEEP.format(dataset=str(write_dataset(folder / "text", validation=topics["while"]))))
        for repeat in range(args.repeats + 1):
            stages = run_command(file, folder / f"runs{repeat}")
            for stage, reached, own in stages if repeat else []:
                seconds[stage].append(reached)
                processor[stage] += [] if own is None else [own]
    print("| stage | s | from - to | s of processor |\n| --- | --- | --- | --- |")
    for stage, values in sorted(seconds.items(), key=lambda item: statistics.median(item[1])):
        own_median = f"{statistics.median(processor[stage]):.2f}" if processor[stage] else ""
        print(f"| {stage} | {statistics.median(values):.2f} | {min(values):.2f} - {max(values):.2f} | {own_median} |")


if __name__ == "__main__":
    main()
