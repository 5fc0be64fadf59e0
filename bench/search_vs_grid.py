"""A search with early stopping against the full grid: the best val loss of each, and the tokens that it took.

    python bench/search_vs_grid.py [--seeds 5] [--max-train-tokens 40000] [--storage FOLDER]

The grid has 72 rows of quickstart size (3 batch sizes, 2 context lengths, 12 learning rates); the search draws from the
same points, with Optuna's TPE and asha. Each seed is a search of its own; the grid is trained once.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
from pathlib import Path

from ray import tune
from rich.console import Console as RichConsole

from raylm import Sweep, TrialConfig
from raylm.monitor.console import Console
from raylm.results.rows import Results, Row
from raylm.runner import run

LEARNING_RATES = [round(1e-5 * 10 ** (step / 4), 8) for step in range(12)]
"""1e-5 to 5.6e-3, four to a decade."""
BATCH_SIZES, CONTEXT_LENGTHS = [4, 8, 16], [64, 128]
SAMPLES = 36
"""Trials of a search: half of the grid's."""


def sweep(max_train_tokens: int, seed: int | None) -> Sweep:
    """The grid, or the search with a seed."""
    fixed = {"dropout": 0.0, "max_train_tokens": max_train_tokens, "evals_per_epoch": 9}
    values = {"learning_rate": LEARNING_RATES, "batch_size": BATCH_SIZES, "context_length": CONTEXT_LENGTHS}
    if seed is None:
        return Sweep(name="grid", space={**fixed, **{name: tune.grid_search(some) for name, some in values.items()}})
    return Sweep(
        name=f"search-{seed}",
        space={**fixed, **{name: tune.choice(some) for name, some in values.items()}},
        search="optuna",
        num_samples=SAMPLES,
        search_seed=seed,
        scheduler="asha",
    )


def tokens(rows: list[Row]) -> int:
    """Tokens that rows were trained on."""
    return sum(row.latest_checkpoint.progress.tokens_seen for row in rows if row.latest_checkpoint)


def best(found: Results) -> tuple[float, TrialConfig]:
    """The lowest val loss of a finished row, and the row."""
    finished = [(row.metrics.val_loss, row.config) for row in found.rows if row.status == "done" and row.metrics]
    return min(finished, key=lambda pair: pair[0])


def main() -> None:
    """Trains the grid, then searches, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-train-tokens", type=int, default=40_000)
    parser.add_argument("--storage", help="where to keep the results, and to go on from; default: nowhere")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        storage = str(Path(asked.storage or temporary))
        silent = Console(quiet=True, rich_console=RichConsole(file=io.StringIO()))
        grid = run(sweep(asked.max_train_tokens, None), storage=storage, console=silent).results
        loss, config = best(grid)
        print("| what | trials | stopped early | tokens, of the grid's | best val loss | above the grid's |")
        print("| --- | --- | --- | --- | --- | --- |")
        print(f"| grid | {len(grid.rows)} | 0 | 100 % | {loss:.3f} | 0 |", flush=True)
        shares, above = [], []
        for seed in range(asked.seeds):
            found = run(sweep(asked.max_train_tokens, seed), storage=storage, console=silent).results
            shares.append(tokens(found.rows) / tokens(grid.rows))
            above.append(best(found)[0] - loss)
            stopped = found.count("stopped")
            print(f"| search, seed {seed} | {len(found.rows)} | {stopped} | {shares[-1]:.0%} ", end="")
            print(f"| {best(found)[0]:.3f} | {above[-1]:+.3f} |", flush=True)
        print(f"\nmedian: {statistics.median(shares):.0%} of the grid's tokens, {statistics.median(above):+.3f} nats")
        print(f"the grid's best row: {config.run_name}")


if __name__ == "__main__":
    main()
