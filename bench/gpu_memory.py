"""Compare the peak memory that `raylm plan` expects on a GPU with that of trials on fake CUDA tensors, without a GPU.

    python bench/gpu_memory.py [--models gpt2 gpt2-xl] [--contexts 256 512 1024] [--out cells.jsonl]

Tensors have shapes and no numbers; torch's CPU build and g++ on Linux suffice (tests/fake_cuda). Each cell is one
or two steps without dropout: whole batches of 8 windows, two micro-batches of 8 and two of one window, with and without
recomputed activations, in both precisions, with both optimizers. Cells that are in the file are not run again. All 288
take 20 to 30 minutes of one core.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).resolve().parents[1] / "tests" / "programs" / "fake_cuda_memory.py"
MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
BATCHES = {"8 at once": (8, 8), "16 in parts of 8": (16, 8), "2 one by one": (2, 1)}
"""Windows of a batch and of its micro-batches."""
CELLS_PER_PROCESS = 12


def list_cells(models: Sequence[str], contexts: Sequence[int]) -> list[list[Any]]:
    """Return the cells of the table, as tests/programs/fake_cuda_memory.py takes them."""
    axes = ("bfloat16", "float32"), ("adafactor", "adamw"), contexts, BATCHES.values(), (False, True), models
    return [
        [model, context, batch, micro, recompute, precision, optimizer, 0.0, None]
        for precision, optimizer, context, (batch, micro), recompute, model in itertools.product(*axes)
    ]


def measure(cells: Sequence[list[Any]], out: Path) -> None:
    """Run cells in processes of their own, and append a line of JSON for each to a file."""
    for start in range(0, len(cells), CELLS_PER_PROCESS):
        command = [sys.executable, str(PROGRAM), json.dumps(cells[start : start + CELLS_PER_PROCESS])]
        with out.open("a") as file:
            subprocess.run(command, stdout=file, check=True)
        print(f"{len(out.read_text().splitlines())} cells in {out}", file=sys.stderr, flush=True)


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """Print the smallest and the largest ratio of plan and peak over the contexts, by model and kind of cell."""
    rows, columns = defaultdict[tuple[str, str], dict[str, list[float]]](lambda: defaultdict(list)), list[str]()
    for result in results:
        model, _, batch, micro, recompute, precision, optimizer, *_ = result["cell"]
        split = next(name for name, sizes in BATCHES.items() if sizes == (batch, micro))
        row = (split + (", recomputed" if recompute else ""), f"{precision}, {optimizer}")
        rows[row][model].append(result["planned"] / result["tracked"])
        columns = [name for name in MODELS if name in {*columns, model}]
    print(f"| windows | precision, optimizer | {' | '.join(columns)} |\n{'| --- ' * (len(columns) + 2)}|")
    for (split, kind), ratios in rows.items():
        texts = [f"{min(ratios[model]):.2f} to {max(ratios[model]):.2f}" if ratios[model] else "" for model in columns]
        print(f"| {split} | {kind} | {' | '.join(texts)} |")
    every = sorted(ratio for row in rows.values() for ratios in row.values() for ratio in ratios)
    print(
        f"\n{len(every)} cells, plan / peak from {every[0]:.3f} to {every[-1]:.3f}, median {every[len(every) // 2]:.3f}"
    )


def main() -> None:
    """Measure the cells that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--contexts", nargs="+", type=int, default=[256, 512, 1024])
    parser.add_argument("--out", type=Path, default=Path("gpu-memory.jsonl"), help="default: %(default)s")
    args = parser.parse_args()
    cells = list_cells(args.models, args.contexts)
    args.out.touch()
    done = {json.dumps(json.loads(line)["cell"]) for line in args.out.read_text().splitlines()}
    measure([cell for cell in cells if json.dumps(cell) not in done], args.out)
    results = [json.loads(line) for line in args.out.read_text().splitlines()]
    print_table([result for result in results if result["cell"] in cells])


if __name__ == "__main__":
    main()
