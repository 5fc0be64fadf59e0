"""Benchmark a search with early stopping against the full grid: best val loss and training tokens of each.

    python bench/search_vs_grid.py [--seeds 5] [--max-train-tokens 40000] [--storage FOLDER]

The grid has 72 rows of quickstart size (3 batch sizes, 2 context lengths, 12 learning rates); the search samples
the same points, with Optuna's TPE and asha. Each seed is a separate search; the grid is trained once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import tempfile
from pathlib import Path

from ray import tune

from raylm import Sweep, TrialConfig
from raylm.results.rows import Row, SweepRows
from raylm.runner import run

LEARNING_RATES = [round(1e-5 * 10 ** (step / 4), 8) for step in range(12)]
"""From 1e-5 to 5.6e-3, four per decade."""
BATCH_SIZES, CONTEXT_LENGTHS = [4, 8, 16], [64, 128]
SAMPLES = 36
"""Trials of a search: half of the grid."""


def build_sweep(max_train_tokens: int, seed: int | None) -> Sweep:
    """Return the grid, or the search with a seed."""
    fixed = {"dropout": 0.0, "max_train_tokens": max_train_tokens, "evals_per_epoch": 9}
    values = {"learning_rate": LEARNING_RATES, "batch_size": BATCH_SIZES, "context_length": CONTEXT_LENGTHS}
    if seed is None:
        return Sweep(
            name="grid", space={**fixed, **{name: tune.grid_search(choices) for name, choices in values.items()}}
        )
    return Sweep(
        name=f"search-{seed}",
        space={**fixed, **{name: tune.choice(choices) for name, choices in values.items()}},
        search="optuna",
        num_samples=SAMPLES,
        search_seed=seed,
        scheduler="asha",
    )


def count_tokens(rows: list[Row]) -> int:
    """Return the number of training tokens of these rows."""
    return sum(row.latest_checkpoint.progress.tokens_seen for row in rows if row.latest_checkpoint)


def find_best(results: SweepRows) -> tuple[float, TrialConfig]:
    """Return the lowest val loss of a finished row, and its config."""
    finished = [(row.metrics.val_loss, row.config) for row in results.rows if row.status == "done" and row.metrics]
    return min(finished, key=lambda pair: pair[0])


def main() -> None:
    """Train the grid, run the searches, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-train-tokens", type=int, default=40_000)
    parser.add_argument("--storage", help="folder to keep results in and to resume from; default: temporary")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        storage = str(Path(args.storage or temporary))
        with contextlib.redirect_stdout(io.StringIO()):
            grid = run(build_sweep(args.max_train_tokens, None), storage=storage, quiet=True).results
        loss, config = find_best(grid)
        print("| sweep | trials | stopped early | tokens, relative to the grid | best val loss | above the grid's |")
        print("| --- | --- | --- | --- | --- | --- |")
        print(f"| grid | {len(grid.rows)} | 0 | 100 % | {loss:.3f} | 0 |", flush=True)
        shares, above = [], []
        for seed in range(args.seeds):
            with contextlib.redirect_stdout(io.StringIO()):
                results = run(build_sweep(args.max_train_tokens, seed), storage=storage, quiet=True).results
            shares.append(count_tokens(results.rows) / count_tokens(grid.rows))
            above.append(find_best(results)[0] - loss)
            stopped = results.count("stopped")
            print(f"| search, seed {seed} | {len(results.rows)} | {stopped} | {shares[-1]:.0%} ", end="")
            print(f"| {find_best(results)[0]:.3f} | {above[-1]:+.3f} |", flush=True)
        print(f"\nmedian: {statistics.median(shares):.0%} of the grid's tokens, {statistics.median(above):+.3f} nats")
        print(f"the grid's best row: {config.run_name}")


if __name__ == "__main__":
    main()
