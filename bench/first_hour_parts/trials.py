"""Whole trials by raylm's training loop: throughput, peak memory, memory that runs out, checkpoints."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from first_hour_parts.setup import Cell, Setup, build_config, build_corpus
from raylm.config.trial import TrialConfig
from raylm.planning.memory import RUNTIME_BASELINE_BYTES, MemoryModel
from raylm.results.progress import MicroBatching, StepMetrics
from raylm.training import trainer
from raylm.training.device import ABILITIES
from raylm.training.models import ModelSource
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.step_graph import CudaRecording
from raylm.training.train import Evaluation, finetune

TIMED_TOKENS = 1_000_000
"""Tokens of a trial whose throughput is measured, within 60 to 400 steps."""
PLAN_MARGIN = 1.2
"""Memory that a trial is limited to, in units of the planned peak of what it is to fall back to."""


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
    compiled: bool = False,
) -> Iterator[Evaluation]:
    """Start a trial of some steps; return the iterator of its evaluations."""
    options = ExecutionOptions(
        setup.device,
        precision or setup.precision,
        micro_batching,
        min_steps_to_compile=1 if compiled else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        build_config(cell, 0.0).save_pretrained(folder)
        source = ModelSource(cell.model, folder, pretrained=False)
        corpus = build_corpus(cell, steps)
        yield from finetune(config, corpus, source, options=options, hooks=hooks, resume_from=resume_from)


@dataclass(frozen=True)
class TimedTrial:
    """Result of a trial that has been run to its end."""

    tokens_per_second: float
    """Of the last two thirds of its steps."""
    seconds: float
    """Of the whole trial, with building the model and the evaluation."""
    losses: list[float]
    """Training loss of each step, or of a few of them together."""
    train_loss: float
    val_loss: float
    warnings: list[str]
    """Warnings of raylm."""


def run_timed(setup: Setup, cell: Cell, config: TrialConfig, steps: int, *, compiled: bool = False) -> TimedTrial:
    """Run a trial of some steps and one evaluation."""
    times: list[tuple[int, float]] = []

    def on_step(metrics: StepMetrics) -> None:
        times.append((metrics.step, time.perf_counter()))

    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        (last,) = start(setup, cell, config, steps, hooks=TrainingHooks(on_step=on_step), compiled=compiled)
    taken = time.perf_counter() - started
    (first_step, first_time), (last_step, last_time) = times[len(times) // 3], times[-1]
    return TimedTrial(
        tokens_per_second=(last_step - first_step) * cell.num_tokens / (last_time - first_time),
        seconds=taken,
        losses=[loss for _, loss in last.trainer.progress.curve],
        train_loss=last.eval_metrics.train_loss,
        val_loss=last.eval_metrics.val_loss,
        warnings=[str(warning.message) for warning in caught if "raylm" in warning.filename],
    )


def _num_steps(setup: Setup, cell: Cell) -> int:
    """Return a number of steps that takes a GPU seconds, and at which losses are read at least twice."""
    few = 3 * ABILITIES[setup.device].loss_check_steps + 1
    return int(setup.pick(max(60, min(400, TIMED_TOKENS // cell.num_tokens)), few))


def throughput(setup: Setup, *, cell: str) -> dict[str, Any]:
    """Return the tokens per second of a trial, against the plan's estimate."""
    sizes = setup.cell(cell)
    config, steps = build_trial(sizes), _num_steps(setup, sizes)
    trial = run_timed(setup, sizes, config, steps)
    estimate = _estimate_tokens_per_second(setup, sizes, config, steps)
    return {
        "tokens/s": trial.tokens_per_second,
        "estimated": estimate,
        "estimated / measured": estimate / trial.tokens_per_second if estimate else None,
        "s of the whole trial": trial.seconds,
        "train loss": trial.train_loss,
        "val loss": trial.val_loss,
        **setup.peak_gib(),
        "warnings": "; ".join(trial.warnings) or None,
    }


def graph(setup: Setup, *, cell: str, dropout: float = 0.0, tool: str = "raylm") -> dict[str, Any]:
    """Return throughput, memory and losses of a trial whose steps are CUDA graphs, and launched kernel by kernel.

    Args:
        cell: the trial.
        dropout: its dropout.
        tool: `raylm`, or `compiled`: as trials of many steps are.
    """
    sizes = setup.cell(cell)
    config, steps = build_trial(sizes, dropout=dropout), _num_steps(setup, sizes)
    values: dict[str, Any] = {}
    losses: list[list[float]] = []
    for name, can_record in (("as a graph", trainer.can_record), ("kernel by kernel", lambda *_: False)):
        setup.clear()
        with (
            mock.patch.object(trainer, "can_record", can_record),
            mock.patch.object(CudaRecording, "launch", autospec=True, side_effect=CudaRecording.launch) as launch,
        ):
            trial = run_timed(setup, sizes, config, steps, compiled=tool == "compiled")
        losses.append(trial.losses)
        values[name] = {
            "tokens/s": trial.tokens_per_second,
            "steps": steps,
            "launches of a graph": launch.call_count,
            "s of the whole trial": trial.seconds,
            **setup.peak_gib(),
            "val loss": trial.val_loss,
            "warnings": "; ".join(trial.warnings) or None,
        }
    return {"largest difference of losses": max(abs(a - b) for a, b in zip(*losses, strict=True)), **values}


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


def out_of_memory(setup: Setup, *, cell: str, enough_for: int) -> dict[str, Any]:
    """Return what a trial falls back to with less memory than its batch takes, and the effect on its losses.

    Args:
        cell: the trial.
        enough_for: micro-batch that memory is planned to be enough for; 0: one window, with activations recomputed.
    """
    sizes = setup.cell(cell)
    config, steps, fallbacks = build_trial(sizes), setup.pick(6, 2), list[str]()
    target = MicroBatching(max(1, enough_for), recompute=enough_for == 0)
    planned = memory_model(setup, sizes, config, setup.precision).peak_bytes(target)
    limit = int(PLAN_MARGIN * (planned - RUNTIME_BASELINE_BYTES[setup.device]))

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
