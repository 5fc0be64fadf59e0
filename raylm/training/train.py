"""Training loop: fine-tunes one trial, as a generator of its evaluations. Does not depend on Ray."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from raylm.config.trial import TrialConfig
from raylm.data.corpus import Corpus
from raylm.numerics import windows_per_rank
from raylm.results.progress import EvalMetrics, MicroBatching, Progress
from raylm.training import checkpoint, layers, models
from raylm.training.batches import Batches
from raylm.training.device import ABILITIES, keep_freed_blocks, return_freed_blocks
from raylm.training.distributed import SINGLE_PROCESS, DistributedContext
from raylm.training.optim.optimizer import build_optimizer
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.trainer import Trainer
from raylm.training.validation import build_training_windows

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Evaluation:
    """State of a trial at an evaluation or at a due checkpoint. Save it before requesting the next one."""

    eval_metrics: EvalMetrics
    """Losses; NaN if the trial diverged, and at a checkpoint between two evaluations."""
    diverged: bool
    """True if a loss was not finite: this evaluation is the last one."""
    trainer: Trainer

    def metrics(self) -> dict[str, float]:
        """Return the metrics as a flat mapping, without those that are not finite.

        `best_*` are those of the best epoch so far, also after the trial diverged.
        """
        best, progress = self.trainer.progress.best_metrics, self.trainer.progress
        values = {
            **dataclasses.asdict(self.eval_metrics),
            "nats_per_byte": self.trainer.corpus.validation.per_byte(self.eval_metrics.val_loss),
            "best_train_loss": best.train_loss if best else math.nan,
            "best_val_loss": best.val_loss if best else math.nan,
            "best_adj_val_loss": best.adj_val_loss if best else math.nan,
            "best_epoch": best.epoch if best else math.nan,
            "epochs_seen": progress.step * self.trainer.config.epochs / progress.total_steps,
            "diverged": int(self.diverged),
            "tokens_per_second": progress.tokens_seen / progress.training_seconds,
        }
        del values["precision"]
        if progress.loss_scale is not None:
            values["skipped_steps"] = progress.skipped_steps
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the trial into an empty folder."""
        self.start_saving(folder)()

    def start_saving(self, folder: Path, max_copy_bytes: float = 0) -> Callable[[], None]:
        """Save a checkpoint into an empty folder as far as the trial has to wait for it.

        On a GPU, that is a copy of its tensors to the host's memory, if they take at most `max_copy_bytes`. Otherwise
        they are written.

        Returns:
            Function that completes the checkpoint, in any thread.
        """
        trainer = self.trainer
        model, optimizer, tokenizer_files = trainer.model, trainer.optimizer, trainer.corpus.tokenizer_files
        has_own_memory = ABILITIES[trainer.options.device].has_own_memory
        copied = has_own_memory and checkpoint.count_bytes(model, optimizer) <= max_copy_bytes
        return checkpoint.start_saving(
            folder, trainer.config, model, optimizer, tokenizer_files, trainer.progress, copied=copied
        )


def finetune(
    config: TrialConfig,
    corpus: Corpus,
    source: models.ModelSource,
    *,
    options: ExecutionOptions = ExecutionOptions(),
    hooks: TrainingHooks = TrainingHooks(),
    resume_from: Path | None = None,
    dist_context: DistributedContext = SINGLE_PROCESS,
) -> Iterator[Evaluation]:
    """Fine-tune one trial.

    A resumed trial ends with the same numbers as an uninterrupted one: bit for bit on a CPU with the same number of
    ranks and threads.

    Args:
        corpus: the dataset, tokenized for the model.
        source: the model, from `models.resolve_model`.
        options: device, precision and micro-batching.
        hooks: callbacks.
        resume_from: folder of a checkpoint of this trial.
        dist_context: this process among the ranks of the trial. All ranks must call this with equal arguments and
            exhaust the iterator: each yields the same evaluations, and one of them saves.

    Yields:
        `evals_per_epoch` evaluations per epoch, one at each due checkpoint between them, and a last one with `diverged`
        once a loss is not finite.

    Raises:
        UserError: if the model cannot be loaded.
        WorkError: if `resume_from` is not a checkpoint of this trial.
        RestartError: if memory ran out, and the trial can only continue from a checkpoint.
    """
    trainer = _build_trainer(config, corpus, source, options, hooks, resume_from, dist_context)
    progress, steps_per_epoch = trainer.progress, trainer.progress.total_steps // config.epochs
    stops = _evaluation_steps(steps_per_epoch, config.evals_per_epoch)
    if hooks.on_initial_loss is not None and resume_from is None:
        initial_loss = trainer.validation_loss()
        if dist_context.rank == 0 and math.isfinite(initial_loss):
            hooks.on_initial_loss(initial_loss, options.precision)
    while not progress.is_complete:
        epoch, first_step = divmod(progress.step, steps_per_epoch)
        if first_step == 0:
            progress.start_epoch()
        stop = next(stop for stop in stops if stop > first_step)
        is_finite = trainer.train(epoch, range(first_step, stop))
        if is_finite and progress.step < epoch * steps_per_epoch + stop:
            yield Evaluation(_nan_metrics(epoch, progress), False, trainer)
            continue
        eval_metrics = trainer.evaluate(epoch) if is_finite else _nan_metrics(epoch, progress)
        if eval_metrics.is_finite:
            progress.evaluations.append(eval_metrics)
        yield Evaluation(eval_metrics, not eval_metrics.is_finite, trainer)
        if not eval_metrics.is_finite:
            return


def _build_trainer(
    config: TrialConfig,
    corpus: Corpus,
    source: models.ModelSource,
    options: ExecutionOptions,
    hooks: TrainingHooks,
    resume_from: Path | None,
    dist_context: DistributedContext,
) -> Trainer:
    """Load model, optimizer and progress, new or from a checkpoint."""
    windows = build_training_windows(config, corpus)
    total_steps = -(-len(windows) // config.batch_size) * config.epochs
    max_windows = windows_per_rank(config.batch_size, dist_context.world_size)
    micro_batching = options.micro_batching or MicroBatching(max_windows)
    if resume_from is None:
        progress = Progress(total_steps, micro_batching.micro_batch_size, ranks=dist_context.world_size)
        progress.micro_batching = micro_batching
        model = models.load_model(source, vocab_size=corpus.vocab_size, dropout=config.dropout, seed=config.seed)
    else:
        progress = checkpoint.load_progress(resume_from, config, total_steps)
        if progress.ranks != dist_context.world_size:  # rounding and memory differ in any case
            progress.ranks, progress.micro_batching = dist_context.world_size, micro_batching
        model = models.load_pretrained(resume_from, config.run_name)
    progress.micro_batching = progress.micro_batching.clamp(options.micro_batching_limit, max_windows)
    if options.device == "cpu":
        is_short_of_memory = progress.recompute or progress.micro_batch_size < max_windows
        return_freed_blocks() if is_short_of_memory else keep_freed_blocks()
    if progress.recompute:
        models.enable_activation_checkpointing(model)
    model.to(options.device).train()
    is_long = options.min_steps_to_compile is not None and total_steps >= options.min_steps_to_compile
    is_compiled = ABILITIES[options.device].has_cuda and is_long and layers.can_compile(model)
    if is_compiled:
        layers.compile_blocks(model)
    optimizer = build_optimizer(config, model)
    if resume_from is not None:
        checkpoint.load_optimizer(resume_from, optimizer)
    return Trainer(
        config=config,
        corpus=corpus,
        batches=Batches(windows, torch.device(options.device)),
        model=model,
        loss_fn=dist_context.build_loss(model),
        optimizer=optimizer,
        progress=progress,
        options=options,
        hooks=hooks,
        dist_context=dist_context,
        is_compiled=is_compiled,
    )


def _nan_metrics(epoch: int, progress: Progress) -> EvalMetrics:
    return EvalMetrics(epoch + 1, progress.step, progress.tokens_seen, math.nan, math.nan, math.nan)


def _evaluation_steps(steps_per_epoch: int, num_evaluations: int) -> list[int]:
    """Return the steps of an epoch after which to evaluate: evenly spaced, the last one included."""
    return sorted({-(-steps_per_epoch * number // num_evaluations) for number in range(1, num_evaluations + 1)})
