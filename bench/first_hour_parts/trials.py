"""Whole trials by raylm's training loop: throughput, peak memory, memory that runs out, checkpoints."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from first_hour_parts.setup import Cell, Setup, build_config, build_corpus
from raylm.config.trial import TrialConfig
from raylm.planning.memory import RUNTIME_BASELINE_BYTES, MemoryModel
from raylm.results.progress import MicroBatching, StepMetrics
from raylm.training.models import ModelSource
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.train import Evaluation, finetune


def build_trial(cell: Cell, **options: Any) -> TrialConfig:
    """Return the trial of a cell, without dropout unless the options have it."""
    sizes = {"context_length": cell.context_length, "batch_size": cell.batch_size}
    return TrialConfig(**{"model": cell.model, "pretrained": False, "dropout": 0.0, **sizes, **options})


def memory_model(setup: Setup, cell: Cell, config: TrialConfig, precision: str) -> MemoryModel:
    """Return the plan's model of the memory of a trial."""
    return MemoryModel(cell.shape, config, setup.device, precision)


def start(
    setup: Setup,
    cell: Cell,
    config: TrialConfig,
    steps: int,
    *,
    precision: str | None = None,
    micro_batching: MicroBatching | None = None,
    hooks: TrainingHooks = TrainingHooks(),
    resume_from: Path | None = None,
) -> Iterator[Evaluation]:
    """Start a trial of some steps; return the iterator of its evaluations."""
    options = ExecutionOptions(setup.device, precision or setup.precision, micro_batching)
    with tempfile.TemporaryDirectory() as folder:
        build_config(cell, 0.0).save_pretrained(folder)
        source = ModelSource(cell.model, folder, pretrained=False)
        corpus = build_corpus(cell, steps)
        yield from finetune(config, corpus, source, options=options, hooks=hooks, resume_from=resume_from)


def throughput(setup: Setup, *, cell: str) -> dict[str, Any]:
    """Return the tokens per second of a trial's steps after the first twenty, against the plan's estimate."""
    sizes = setup.cell(cell)
    steps = setup.pick(60, 4)
    times: list[tuple[int, float]] = []

    def on_step(metrics: StepMetrics) -> None:
        times.append((metrics.step, time.perf_counter()))

    config = build_trial(sizes)
    started = time.perf_counter()
    (last,) = start(setup, sizes, config, steps, hooks=TrainingHooks(on_step=on_step))
    taken = time.perf_counter() - started
    (first_step, first_time), (last_step, last_time) = times[len(times) // 3], times[-1]
    measured = (last_step - first_step) * sizes.num_tokens / (last_time - first_time)
    estimate = _estimate_tokens_per_second(setup, sizes, config, steps)
    metrics = last.eval_metrics
    return {
        "tokens/s": measured,
        "estimated": estimate,
        "estimated / measured": estimate / measured if estimate else None,
        "s of the whole trial": taken,
        "train loss": metrics.train_loss,
        "val loss": metrics.val_loss,
        **setup.peak_gib(),
    }


def _estimate_tokens_per_second(setup: Setup, cell: Cell, config: TrialConfig, steps: int) -> float | None:
    """Return the tokens per second that `raylm plan` expects, or None on a card that it does not know."""
    from raylm.planning.devices import find_device, measure_cpu
    from raylm.planning.throughput import Placement

    device = find_device(torch.cuda.get_device_name()) if setup.device == "cuda" else measure_cpu()
    if device is None:
        return None
    placement = Placement(device, 1.0, 1, setup.precision)
    model, tokens = placement.memory_model(cell.shape, config), steps * cell.num_tokens
    whole = MicroBatching(cell.batch_size)
    return tokens / placement.estimate_training_seconds(model, whole, tokens, steps)


def peak(
    setup: Setup,
    *,
    cell: str,
    micro: int | None = None,
    recompute: bool = False,
    precision: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return the peak memory of a trial of three steps and an evaluation, against the plan's."""
    sizes = setup.cell(cell)
    config, precision = build_trial(sizes, **options), precision or setup.precision
    micro_batching = MicroBatching(min(micro or sizes.batch_size, sizes.batch_size), recompute)
    planned = memory_model(setup, sizes, config, precision).peak_bytes(micro_batching)
    planned_gib = (planned - RUNTIME_BASELINE_BYTES[setup.device]) / 2**30
    (last,) = start(setup, sizes, config, 3, precision=precision, micro_batching=micro_batching)
    values: dict[str, Any] = {"planned GiB": planned_gib, **setup.peak_gib()}
    if "peak GiB" in values:
        values["planned / peak"] = planned_gib / values["peak GiB"]
        values["held / peak"] = values["held GiB"] / values["peak GiB"]
    used = last.trainer.progress.micro_batching
    return {**values, "ran as planned": "yes" if used == micro_batching else f"no: {used}"}


def out_of_memory(setup: Setup, *, cell: str, fraction_of_plan: float) -> dict[str, Any]:
    """Return what a trial falls back to with less memory than its batch takes, and the effect on its losses."""
    sizes = setup.cell(cell)
    config, steps, fallbacks = build_trial(sizes), setup.pick(6, 2), list[str]()
    planned = memory_model(setup, sizes, config, setup.precision).peak_bytes(MicroBatching(sizes.batch_size))
    limit = int(fraction_of_plan * (planned - RUNTIME_BASELINE_BYTES[setup.device]))

    def on_out_of_memory(smaller: MicroBatching) -> None:
        held = f", {torch.cuda.memory_allocated() / 2**30:.2f} GiB still held" if setup.device == "cuda" else ""
        fallbacks.append(f"{smaller}{held}")

    (free,) = start(setup, sizes, config, steps)
    free_losses, before = [loss for _, loss in free.trainer.progress.curve], setup.peak_gib()
    del free
    setup.clear()
    with _memory_limit(setup, limit):
        hooks = TrainingHooks(on_out_of_memory=on_out_of_memory)
        (limited,) = start(setup, sizes, config, steps, hooks=hooks)
    losses = [loss for _, loss in limited.trainer.progress.curve]
    return {
        "limit GiB": limit / 2**30,
        **before,
        **{f"{name}, limited": value for name, value in setup.peak_gib().items()},
        "fell back to": "; ".join(fallbacks) or "not at all",
        "largest difference of losses": max(abs(a - b) for a, b in zip(free_losses, losses, strict=True)),
    }


@contextmanager
def _memory_limit(setup: Setup, limit: int) -> Iterator[None]:
    """Limit the memory of this process on a GPU; no-op on a CPU."""
    if setup.device != "cuda":
        yield
        return
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def checkpoint(setup: Setup, *, cell: str) -> dict[str, Any]:
    """Return the times to save a checkpoint and to resume from it, and the difference of the resumed losses."""
    sizes = setup.cell(cell)
    config = build_trial(sizes, evals_per_epoch=2)
    steps = setup.pick(20, 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trial = start(setup, sizes, config, steps)
        first = next(trial)
        started = time.perf_counter()
        first.save(folder)
        saved = time.perf_counter() - started
        size = sum(file.stat().st_size for file in folder.iterdir())
        last = next(trial)
        uninterrupted = last.eval_metrics
        trial.close()  # type: ignore[attr-defined]
        del trial, first, last
        setup.clear()
        times: list[float] = []
        hooks = TrainingHooks(on_step=lambda metrics: times.append(time.perf_counter()))
        started = time.perf_counter()
        (resumed,) = start(setup, sizes, config, steps, resume_from=folder, hooks=hooks)
    metrics = resumed.eval_metrics
    return {
        "GB": size / 1e9,
        "s to save": saved,
        "s to resume, to the first read of a loss": times[0] - started,
        "train loss": uninterrupted.train_loss,
        "difference of the resumed train loss": metrics.train_loss - uninterrupted.train_loss,
        "of the resumed val loss": metrics.val_loss - uninterrupted.val_loss,
    }
