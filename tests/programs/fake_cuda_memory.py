"""Print the peak memory of trials on fake CUDA tensors beside the plan, as JSON. Arguments: cells as JSON.

A cell is [model, context_length, batch_size, micro_batch_size, recompute, precision, optimizer, dropout, limit_bytes].
With a limit, memory runs out beyond so many bytes of tensors; null is none.
"""

from __future__ import annotations

import contextlib
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
from raylm.results.progress import MicroBatching, StepMetrics  # noqa: E402
from raylm.training.options import ExecutionOptions, TrainingHooks  # noqa: E402
from raylm.training.train import finetune  # noqa: E402

NUM_STEPS = {"adafactor": 1, "adamw": 2}
"""Steps of a trial: the moments of AdamW exist from the second one on."""


class _TrainedError(Exception):
    """The end of the steps; the evaluation needs less memory."""


def _stop(metrics: StepMetrics) -> None:
    raise _TrainedError


def measure(cell: list[Any]) -> dict[str, Any]:
    """Return planned and tracked bytes of a cell, without the memory of the runtime, and what it fell back to."""
    model, context_length, batch_size, micro_batch_size, recompute, precision, optimizer, dropout, limit_bytes = cell
    num_windows = NUM_STEPS[optimizer] * batch_size
    trial = TrialConfig(
        model=model,
        context_length=context_length,
        batch_size=batch_size,
        optimizer=optimizer,
        dropout=dropout,
        max_train_tokens=num_windows * (context_length - 1),
    )
    micro_batching = MicroBatching(micro_batch_size, recompute)
    memory_model = MemoryModel(MODELS[model].shape, trial, "cuda", precision)
    smaller: list[list[Any]] = []
    hooks = TrainingHooks(_stop, lambda used: smaller.append([used.micro_batch_size, used.recompute]))
    with tempfile.TemporaryDirectory() as folder:
        source = write_config(model, Path(folder))
        corpus = random_corpus(trial, num_windows + 1)  # the last window is a short one
        options = ExecutionOptions("cuda", precision, micro_batching, next_smaller=memory_model.next_smaller)
        with fake_cuda(), MemoryTracker(limit_bytes) as tracker, contextlib.suppress(_TrainedError):
            next(finetune(trial, corpus, source, options=options, hooks=hooks))
    planned = memory_model.peak_bytes(micro_batching) - RUNTIME_BASELINE_BYTES["cuda"]
    return {"cell": cell, "planned": planned, "tracked": tracker.peak, "smaller": smaller}


if __name__ == "__main__":
    for cell in json.loads(sys.argv[1]):
        print(json.dumps(measure(cell)), flush=True)
