"""Print what a training step asks of a GPU: kernels, graph launches, host time, waits and peak memory.

    python tests/gpu/fake_gpu.py python tests/gpu/step_counts.py [--shape gpt2 256 8] [--optimizer adamw] [--compile]

Without `--shape`, four shapes are measured, of which gpt2-xl takes a minute. `PYTHONPATH=CHECKOUT` measures the raylm
of another checkout by this program. Weights are random and made on the GPU; tokens are random too.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from fake_cuda.trial import random_corpus, write_config

from gpu.counters import Counts, count
from raylm.config.trial import TrialConfig
from raylm.results.progress import StepMetrics
from raylm.training import device, models, train
from raylm.training.options import ExecutionOptions, TrainingHooks

SHAPES = (("gpt2", 256, 8), ("gpt2", 1024, 8), ("gpt2", 1024, 64), ("gpt2-xl", 1024, 16))
"""Model, context length and batch size."""
FIRST_STEP, LAST_STEP = 10, 30
"""Steps between which is counted: both are steps at which the loss is read."""
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """Means of a step, and the memory of a trial."""

    total: Counts
    steps: int
    peak_allocated: int
    """Most bytes that tensors took."""
    peak_reserved: int
    """Most bytes that torch's allocator held."""

    @property
    def kernels(self) -> float:
        """Kernels per step."""
        return self.total.kernels / self.steps

    @property
    def waits(self) -> float:
        """Waits of the host per step."""
        return self.total.waits / self.steps

    @property
    def host_ms(self) -> float:
        """Milliseconds of processor time per step; on the fake GPU, without the driver's."""
        return 1e3 * self.total.cpu_seconds / self.steps


class _Measured(Exception):  # noqa: N818  (no error)
    """End of the measurement."""


def measure(config: TrialConfig, options: ExecutionOptions) -> StepCounts:
    """Train until `LAST_STEP` and return the counts of the steps after `FIRST_STEP`."""
    corpus = random_corpus(config, (LAST_STEP + 10) * config.batch_size)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with ExitStack() as counting, tempfile.TemporaryDirectory() as folder:
        counted: list[Counts] = []

        def on_step(metrics: StepMetrics) -> None:
            if metrics.step == FIRST_STEP:
                counted.append(counting.enter_context(count()))
            elif metrics.step == LAST_STEP:
                counting.close()
                raise _Measured

        hooks = TrainingHooks(on_step=on_step)
        source = write_config(config.model, Path(folder))
        try:
            with mock.patch.object(models, "load_model", load_on_gpu(models.load_model)):
                next(train.finetune(config, corpus, source, options=options, hooks=hooks))
        except _Measured:
            peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            return StepCounts(counted[0], LAST_STEP - FIRST_STEP, *peaks)
    raise AssertionError("the trial ended before it was measured")


def load_on_gpu(load: Any) -> Any:
    """Return a function that makes random weights on the GPU, which is faster for gpt2-xl."""

    def load_there(*args: Any, **kwargs: Any) -> Any:
        with torch.device("cuda"):
            return load(*args, **kwargs)

    return load_there


def main() -> None:
    """Print a Markdown table of the shapes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs=3, action="append", metavar=("MODEL", "CONTEXT", "BATCH"))
    parser.add_argument("--optimizer", default="adafactor")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    options = ExecutionOptions("cuda", "bfloat16")
    if args.compile:
        options = dataclasses.replace(options, min_steps_to_compile=1)
    getattr(device, "set_allocator_options", lambda: None)()  # of a checkout that has it
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bfloat16, {args.optimizer}, {train.__file__}")
    print("| model, context x batch | kernels | graph launches | host ms | waits | allocated | reserved |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for model, context, batch in args.shape or SHAPES:
        shape: dict[str, Any] = {"model": model, "context_length": int(context), "batch_size": int(batch)}
        config = TrialConfig(**shape, optimizer=args.optimizer, dropout=0.0)
        counts = measure(config, options)
        graphs = "-" if counts.total.graph_launches is None else f"{counts.total.graph_launches / counts.steps:g}"
        print(
            f"| {model}, {context} x {batch} | {counts.kernels:,.0f} | {graphs} | {counts.host_ms:.1f} | "
            f"{counts.waits:.2f} | {counts.peak_allocated / GIB:.2f} GiB | {counts.peak_reserved / GIB:.2f} GiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
