"""Benchmark the same grid by raylm and by other tools, each as a whole process from start to end.

    python bench/sweep_vs_peers.py [--precision auto float32] [--rounds 3] [--peers trainer-ray ray-tune]

`gpt2-nano` from the same random weights on the text of Python's documentation, the same windows in the same order, the
same schedule and optimizer, an evaluation and a checkpoint per trial, over learning rates:

- `raylm`: `raylm run`, two trials at a time with a processor each;
- `trainer-ray`: transformers' `Trainer.hyperparameter_search(backend="ray")`, also two at a time;
- `trainer-loop`: a loop over `Trainer`, one trial after another on both processors;
- `trainer-optuna`: `Trainer.hyperparameter_search(backend="optuna")`, also one after another;
- `ray-tune`: a function trainable with the loop of `stock_loop.py` by `ray.tune.Tuner`, two at a time;
- `optuna-joblib`: that loop by an Optuna study in two processes of joblib, with a journal as storage.

`--precision auto` is bfloat16 for all of them (`bf16=True` for Trainer) where the processor has it. The corpus is
prepared before. The tools run in turns, on the CPU. Prints seconds, ratios to raylm, each trial's val loss, and all of
it as a line of JSON. Needs `accelerate`, and `joblib` for the last.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sweep_peers import TOOLS, Losses, Search, write_task

PACKAGES = {
    **dict.fromkeys(("trainer-ray", "trainer-loop", "trainer-optuna"), "accelerate"),
    "optuna-joblib": "joblib",
}
"""Package that a tool needs besides those of raylm."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--precision", nargs="+", choices=["auto", "float32"], default=["auto"])
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each tool")
    peers = [tool for tool in TOOLS if tool != "raylm"]
    parser.add_argument("--peers", nargs="*", choices=peers, default=peers, help="tools to compare raylm with")
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--bf16", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    return parser


def run_tool(args: argparse.Namespace) -> Losses:
    """Run one of the tools in this process."""
    rates = [number * 1e-4 for number in range(1, args.trials + 1)]
    (precision,) = args.precision
    return TOOLS[args.tool](Search(rates, args.tokens, precision, args.bf16, args.folder, args.task))


def time_tool(tool: str, args: argparse.Namespace, precision: str, task: Path, *, bf16: bool) -> tuple[float, Losses]:
    """Return the seconds of a tool's whole process, and its losses.

    Raises:
        SystemExit: if the tool fails, or a trial has no loss.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--tool", tool, "--folder", folder, "--task", str(task)]
        command += ["--trials", str(args.trials), "--tokens", str(args.tokens), "--precision", precision]
        command += ["--bf16"] if bf16 else []
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        started = time.perf_counter()
        process = subprocess.run(command, capture_output=True, text=True, env=environment)
        seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{tool} failed: exit code {process.returncode}\n{process.stdout}{process.stderr}")
    losses = {float(rate): loss for rate, loss in json.loads(process.stdout.splitlines()[-1]).items()}
    if len(losses) != args.trials:
        raise SystemExit(f"{tool} failed: losses of {len(losses)} of {args.trials} trials")
    return seconds, dict(sorted(losses.items()))


def compare(args: argparse.Namespace, precision: str, folder: Path) -> None:
    """Run the tools in turns, and print a table and a line of JSON."""
    from raylm.training.device import resolve_precision

    resolved, task = resolve_precision(precision, "cpu"), folder / f"task-{precision}.pt"
    bf16 = resolved == "bfloat16"
    write_task(task, args.tokens, bf16=bf16)
    seconds: dict[str, list[float]] = {tool: [] for tool in ("raylm", *args.peers)}
    losses: dict[str, Losses] = {}
    for number in range(args.rounds):
        for tool, measured in seconds.items():
            taken, losses[tool] = time_tool(tool, args, precision, task, bf16=bf16)
            measured.append(taken)
            print(f"  round {number + 1}, {precision}: {tool} {taken:.1f} s", file=sys.stderr, flush=True)
    print(f"{precision} ({resolved}), {args.trials} trials of {args.tokens:,} tokens, median of {args.rounds} rounds")
    print(f"{'tool':16}{'s':>8}{'ratio':>8}{'spread':>14}   val losses")
    rows = {}
    for tool, measured in seconds.items():
        rows[tool] = row = summarize(measured, seconds["raylm"]) | {"val_losses": list(losses[tool].values())}
        spread = f"{min(row['ratios']):.2f}-{max(row['ratios']):.2f}"
        values = " ".join(f"{loss:.4f}" for loss in losses[tool].values())
        print(f"{tool:16}{row['median_seconds']:8.1f}{row['median_ratio']:8.2f}{spread:>14}   {values}")
    print(json.dumps({"precision": precision, "resolved": resolved, "trials": args.trials, "tools": rows}), flush=True)


def summarize(seconds: Sequence[float], base: Sequence[float]) -> dict[str, float | list[float]]:
    """Return the seconds of a tool and its ratios to raylm's `base` by round, with the median of each."""
    ratios = [theirs / ours for theirs, ours in zip(seconds, base, strict=True)]
    return {
        "seconds": list(seconds),
        "median_seconds": statistics.median(seconds),
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
    }


def main() -> None:
    """Compare the tools in each precision; with `--tool`, run one of them in this process."""
    args = build_parser().parse_args()
    if args.tool:
        print(json.dumps(run_tool(args)))
        return
    needed = {PACKAGES[peer] for peer in args.peers if peer in PACKAGES}
    if missing := [package for package in sorted(needed) if importlib.util.find_spec(package) is None]:
        raise SystemExit(f"missing packages: pip install {' '.join(missing)}, or leave their --peers out")
    from race import describe_machine

    with tempfile.TemporaryDirectory() as folder:
        for precision in args.precision:
            compare(args, precision, Path(folder))
    print(describe_machine("cpu"))


if __name__ == "__main__":
    main()
