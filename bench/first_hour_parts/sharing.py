"""Two trials at a time on a GPU: as two processes of this program, and by `raylm run`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from first_hour_parts.setup import NotMeasuredError, Setup, build_model
from first_hour_parts.steps import build_step
from raylm.planning.memory import RUNTIME_BASELINE_BYTES
from raylm.training.device import limit_gpu_memory

SWEEP = """
from ray import tune
from raylm import Resources, Sweep
sweep = Sweep(name="first-hour", space={{
    "dataset": {dataset!r}, "model": "gpt2-nano", "context_length": 128, "max_train_tokens": 50_000,
    "learning_rate": tune.grid_search([1e-4, 1e-3]),
}}, resources=Resources(cpus=1, gpus={gpus}))
"""


def measure(setup: Setup, *, cell: str) -> dict[str, Any]:
    """Return the tokens per second of one process, and of two at half of the memory each at the same time."""
    (alone,) = _run_together(setup, cell, number=1)
    together = _run_together(setup, cell, number=2)
    total = sum(result["tokens/s"] for result in together)
    return {
        "tokens/s, one": alone["tokens/s"],
        "tokens/s, two together": total,
        "ratio": total / alone["tokens/s"],
        **{
            f"peak GiB, {number}": result["peak GiB"]
            for number, result in enumerate(together, 1)
            if "peak GiB" in result
        },
    }


def _run_together(setup: Setup, cell: str, number: int) -> list[dict[str, float]]:
    """Return the results of some processes that train at the same time."""
    command = [sys.executable, "-m", "first_hour_parts.sharing", "--device", setup.device, "--cell", cell]
    command += ["--share", str(1 / number), *(["--tiny"] if setup.tiny else [])]
    folder = Path(__file__).resolve().parents[1]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": folder}
    processes = [subprocess.Popen(command, **streams) for _ in range(number)]
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError(f"a process ended before its first step, exit code {process.wait()}")
        outputs = []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            output, _ = process.communicate()
            outputs.append(json.loads(output))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return outputs


def _train_in_this_process(setup: Setup, cell: str, share: float) -> None:
    """Train for some seconds once a line is read, and print the tokens per second."""
    setup.prepare()
    if setup.device == "cuda" and share < 1:
        limit_gpu_memory(share, RUNTIME_BASELINE_BYTES["cuda"])
    sizes = setup.cell(cell)
    model = build_model(sizes, 0.0, setup.device)
    step = build_step(sizes, model, setup.device, tool="raylm", precision=setup.precision)
    for _ in range(setup.pick(5, 1)):
        step().item()
    setup.clear()
    print("ready", flush=True)
    sys.stdin.readline()
    started, steps = time.perf_counter(), 0
    while (taken := time.perf_counter() - started) < setup.pick(10.0, 0.2):
        for _ in range(10):
            step()
        setup.synchronize()
        steps += 10
    tokens = steps * sizes.batch_size * sizes.context_length
    print(json.dumps({"tokens/s": tokens / taken, **setup.peak_gib()}))


def through_ray(setup: Setup) -> dict[str, Any]:
    """Return the times of a sweep of two trials of gpt2-nano at half a GPU each."""
    missing = [name for name in ("ray", "datasets", "tokenizers") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotMeasuredError(f"needs {' and '.join(missing)}")
    from pydoc_data.topics import topics

    from watched import time_sweep, write_dataset

    with tempfile.TemporaryDirectory() as name:
        dataset = write_dataset(Path(name, "text"), validation=topics["while"])
        file = Path(name, "sweep.py")
        file.write_text(SWEEP.format(dataset=str(dataset), gpus=0.5 if setup.device == "cuda" else 0))
        command = [sys.executable, "-m", "raylm.sweep", str(file), "--storage", name, "--address", "local"]
        timing = time_sweep(command, num_trials=2)
    return {
        "s to the first start": timing.started[0],
        "s from the first start to the last end": timing.done[-1] - timing.started[0],
        "s in all": timing.total_seconds,
        "at the same time": "yes" if max(timing.started) < min(timing.done) else "no",
    }


def main() -> None:
    """Train one of several concurrent processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--cell", required=True)
    parser.add_argument("--share", type=float, required=True)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    _train_in_this_process(Setup(args.device, args.tiny), args.cell, args.share)


if __name__ == "__main__":
    main()
