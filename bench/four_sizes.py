"""GPT-2's four sizes at their true shapes: real optimizer steps on real text, with random weights, and their memory.

    python bench/four_sizes.py [--models gpt2 gpt2-xl] [--steps 4] [--context-length 256] [--batch-size 8]

Each size runs in a process of its own. The hub is asked for configurations and tokenizers, not for weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

GIB = 2**30


def cpu_name() -> str:
    """The processor's own name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measure(
    model: str, steps: int, context_length: int, batch_size: int, memory_gib: float | None
) -> dict[str, object]:
    """Trains one size for some steps in this process."""
    import psutil
    import torch

    from raylm import TrialConfig, data, memory, models
    from raylm.train import finetune

    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = "bfloat16" if device == "cuda" else "float32"
    available = torch.cuda.mem_get_info()[1] if device == "cuda" else psutil.virtual_memory().total
    available = memory_gib * GIB if memory_gib else available
    source = models.locate(model, pretrained=False)
    shape = models.shape(source)
    assert shape is not None
    micro_batch_size = memory.micro_batch_size(shape, context_length, batch_size, precision, "adafactor", available)
    with tempfile.TemporaryDirectory() as folder:
        texts = [topics[name] for name in sorted(topics)]
        Path(folder, "train.txt").write_text("\n".join(texts[:-1]))
        Path(folder, "validation.txt").write_text(topics["while"][:500])  # the steps are measured, not the evaluation
        config = TrialConfig(
            dataset=folder,
            model=model,
            pretrained=False,
            context_length=context_length,
            batch_size=batch_size,
            learning_rate=2e-5,
            warmup_ratio=0.0,
            max_train_tokens=steps * batch_size * (context_length - 1),
        )
        corpus = data.prepare(folder, source.files(), model)
        losses: list[float] = []
        times = [time.perf_counter()]

        def on_step(step: int, total_steps: int, loss: float) -> None:
            losses.append(loss)
            times.append(time.perf_counter())
            print(f"{model} step {step} of {total_steps}: loss {loss:.3f}", file=sys.stderr, flush=True)

        (last,) = finetune(
            config,
            corpus,
            source,
            device=device,
            precision=precision,
            micro_batch_size=micro_batch_size,
            on_step=on_step,
        )
    parameters = sum(p.numel() for p in last.trial.model.parameters())
    assert parameters == shape.parameters
    seconds = sorted(later - before for before, later in itertools.pairwise(times[1:]))
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return {
        "model": model,
        "parameters": parameters,
        "micro_batch_size": micro_batch_size,
        "predicted_gib": memory.training_bytes(shape, context_length, micro_batch_size, precision, "adafactor") / GIB,
        "peak_gib": peak / GIB,
        "seconds_per_step": seconds[len(seconds) // 2] if seconds else float("nan"),
        "losses": losses,
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def main() -> None:
    """Measures each size in a process of its own and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--memory-gib", type=float, help="plan micro-batches for so much; default: the device's")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    sizes = (asked.steps, asked.context_length, asked.batch_size, asked.memory_gib)
    if asked.one:
        print(json.dumps(measure(asked.one, *sizes)))
        return
    print(
        "| model | parameters | micro-batch | predicted GiB | peak GiB | s per step | tokens/s | loss, step by step |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for model in asked.models:
        command = [sys.executable, __file__, "--one", model, "--steps", str(asked.steps)]
        command += ["--context-length", str(asked.context_length), "--batch-size", str(asked.batch_size)]
        command += ["--memory-gib", str(asked.memory_gib)] if asked.memory_gib else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
        one = json.loads(done.stdout.splitlines()[-1])
        tokens_per_second = asked.batch_size * (asked.context_length - 1) / one["seconds_per_step"]
        print(
            f"| {model} | {one['parameters']:,} | {one['micro_batch_size']} | {one['predicted_gib']:.1f} "
            f"| {one['peak_gib']:.1f} | {one['seconds_per_step']:.1f} | {tokens_per_second:,.0f} "
            f"| {' '.join(f'{loss:.2f}' for loss in one['losses'])} |",
            flush=True,
        )
    print(
        f"\n{one['device']}, {one['threads']} threads, {one['precision']}, batch {asked.batch_size}, "
        f"context {asked.context_length}, Adafactor, random weights"
    )


if __name__ == "__main__":
    main()
