"""Compare the estimates of `raylm plan` with measured peak memory and seconds of real optimizer steps.

    python bench/plan_accuracy.py [CASE ...] [--steps 4]

A case is MODEL:CONTEXT_LENGTH:BATCH_SIZE, optionally with :GIB, the memory limit that the trial is fitted into. The
models have their true shapes and random weights: only configurations and tokenizers are downloaded from the hub. Each
case runs in a process of its own with a trial's imports, on real text, with Adafactor and the model's own dropout.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

from raylm.config.dataset import DatasetSpec
from raylm.units import GIB

CASES = [
    "gpt2-nano:128:8",
    "gpt2:256:8",
    "gpt2:256:8:3.5",
    "gpt2:1024:2",
    "gpt2:1024:2:2.6",
    "gpt2-medium:256:4",
    "gpt2-medium:256:8:5.5",
    "gpt2-medium:256:8:4.4",
]
"""Whole batches, micro-batches and recomputed activations, within about 8 GiB."""


def measure(case: str, steps: int) -> dict[str, object]:
    """Train a case for some steps in this process and return estimates and measurements."""
    import torch

    import raylm.tuning.trainable  # noqa: F401 (its memory is part of a trial's)
    from raylm import Resources, TrialConfig
    from raylm.data.preparation import prepare
    from raylm.planning import throughput
    from raylm.results.progress import StepMetrics
    from raylm.training import models
    from raylm.training.options import ExecutionOptions, TrainingHooks
    from raylm.training.train import finetune

    model, context_length, batch_size, *gib = case.split(":")
    on_gpu = torch.cuda.is_available()
    placement = throughput.find_placement(Resources(cpus=os.cpu_count() or 1), "auto")
    assert placement is not None, "this GPU is not in raylm.planning.devices.DEVICES"
    placement = replace(placement, device=replace(placement.device, memory_gib=float(gib[0]))) if gib else placement
    source = models.resolve_model(model, pretrained=False)
    shape = models.load_shape(source)
    assert shape is not None
    with tempfile.TemporaryDirectory() as folder:
        texts = [topics[name] for name in sorted(topics)]
        Path(folder, "train.txt").write_text("\n".join(texts[:-1]))
        Path(folder, "validation.txt").write_text(topics["while"][:500])  # steps are measured, not the evaluation
        trial = TrialConfig(
            dataset=folder,
            model=model,
            pretrained=False,
            context_length=int(context_length),
            batch_size=int(batch_size),
            learning_rate=2e-5,
            warmup_ratio=0.0,
            max_train_tokens=steps * int(batch_size) * (int(context_length) - 1),
        )
        memory_model = placement.memory_model(shape, trial)
        micro_batching = memory_model.choose_micro_batching(placement.available_bytes)
        corpus = prepare(DatasetSpec(folder), source.fetch_files(), model)
        losses: list[float] = []
        times = [time.perf_counter()]

        def on_step(step: StepMetrics) -> None:
            losses.append(step.loss)
            times.append(time.perf_counter())
            print(f"{case} step {step.step} of {step.total_steps}: loss {step.loss:.3f}", file=sys.stderr, flush=True)

        (last,) = finetune(
            trial,
            corpus,
            source,
            options=ExecutionOptions(placement.device.type, placement.precision, micro_batching),
            hooks=TrainingHooks(on_step=on_step),
        )
    used = torch.cuda.mem_get_info() if on_gpu else (0, 0)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert sum(p.numel() for p in last.trainer.model.parameters()) == shape.num_parameters
    return {
        "parameters": shape.num_parameters,
        "micro_batch_size": micro_batching.micro_batch_size,
        "recompute": micro_batching.recompute,
        "predicted_gib": memory_model.peak_bytes(micro_batching) / GIB,
        "peak_gib": (used[1] - used[0] if on_gpu else resident) / GIB,
        "estimated_seconds": placement.estimate_training_seconds(
            memory_model, micro_batching, last.eval_metrics.tokens_seen, steps
        )
        / steps,
        "seconds": statistics.median(later - before for before, later in itertools.pairwise(times[1:])),
        "losses": losses,
        "device": torch.cuda.get_device_name()
        if on_gpu
        else f"{placement.device.name}, {torch.get_num_threads()} threads",
        "precision": placement.precision,
        "tflops": placement.device.peak_tflops(placement.precision),
    }


def main() -> None:
    """Measure each case in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", default=CASES, help=f"default: {' '.join(CASES)}")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.cases[0], args.steps)))
        return
    print("| case | micro-batch | predicted GiB | peak GiB | ratio | estimated s per step | taken | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for case in args.cases:
        command = [sys.executable, __file__, "--one", case, "--steps", str(args.steps)]
        measured = json.loads(
            subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        )
        gib, peak, estimate, taken = (
            measured[name] for name in ("predicted_gib", "peak_gib", "estimated_seconds", "seconds")
        )
        print(
            f"| {case} | {measured['micro_batch_size']}{', recomputed' if measured['recompute'] else ''} "
            f"| {gib:.2f} | {peak:.2f} | {gib / peak:.2f} | {estimate:.2f} | {taken:.2f} | {estimate / taken:.2f} |",
            flush=True,
        )
    print(f"\n{measured['device']}, {measured['precision']}, {measured['tflops']:.2f} TFLOP/s in matrix products")


if __name__ == "__main__":
    main()
