"""Print the peak memory of trials on fake CUDA tensors beside the plan, as JSON. Arguments: cells as JSON.

A cell is [model, context_length, batch_size, micro_batch_size, recompute, precision, optimizer, dropout].
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_cuda import guard

guard.load()

from fake_cuda.tensors import fake_cuda  # noqa: E402  (after the guard)
from fake_cuda.trial import MemoryTracker, random_corpus, write_config  # noqa: E402

from raylm.config.catalog import MODELS  # noqa: E402
from raylm.config.trial import TrialConfig  # noqa: E402
from raylm.planning.memory import RUNTIME_BASELINE_BYTES, MemoryModel  # noqa: E402
from raylm.results.progress import MicroBatching  # noqa: E402
from raylm.training.options import ExecutionOptions  # noqa: E402
from raylm.training.train import finetune  # noqa: E402


def measure(cell: list[Any]) -> dict[str, Any]:
    """Return planned and tracked bytes of a cell, without the memory of the runtime."""
    model, context_length, batch_size, micro_batch_size, recompute, precision, optimizer, dropout = cell
    trial = TrialConfig(
        model=model, context_length=context_length, batch_size=batch_size, optimizer=optimizer, dropout=dropout
    )
    micro_batching = MicroBatching(micro_batch_size, recompute)
    with tempfile.TemporaryDirectory() as folder:
        source = write_config(model, Path(folder))
        corpus = random_corpus(trial, num_windows=2 * batch_size)
        options = ExecutionOptions("cuda", precision, micro_batching)
        with fake_cuda(), MemoryTracker() as tracker:
            for _ in finetune(trial, corpus, source, options=options):
                pass
    memory_model = MemoryModel(MODELS[model].shape, trial, "cuda", precision)
    planned = memory_model.peak_bytes(micro_batching) - RUNTIME_BASELINE_BYTES["cuda"]
    return {"cell": cell, "planned": planned, "tracked": tracker.peak}


if __name__ == "__main__":
    for cell in json.loads(sys.argv[1]):
        print(json.dumps(measure(cell)), flush=True)
