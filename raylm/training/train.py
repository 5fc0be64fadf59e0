"""The loop: one trial's fine-tuning as a generator of evaluations. Knows no Ray.

B is the batch, T the context length. Losses are in nats.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from raylm.config.trial import TrialConfig
from raylm.data.corpus import Corpus
from raylm.errors import RestartError, is_out_of_memory
from raylm.results.progress import EvalMetrics, MicroBatching, Progress, StepMetrics
from raylm.training import checkpoint, layers, models, optim
from raylm.training.batches import Batches
from raylm.training.device import lower_mmap_threshold
from raylm.training.distributed import SINGLE_PROCESS, DistributedContext, WindowIndices, gradient_sync
from raylm.training.validation import autocast_loss, build_training_windows, validation_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


LOSS_CHECK_STEPS = {"cpu": 1, "cuda": 10}
"""Steps between two looks at the loss: each makes a GPU wait; a diverged trial is noticed at the next."""
MIN_STEPS_TO_COMPILE = 2000
"""Trials on a GPU of so many steps are compiled: estimated from half a minute of compiling, not measured."""

OnStep = Callable[[StepMetrics], None]
"""Told how the trial is going at each look at its loss."""
OnOutOfMemory = Callable[[MicroBatching], None]
"""Told what a trial is to go on with that has run out of memory."""
IsCheckpointDue = Callable[[], bool]
"""Asked after each look at the loss whether the trial is to be saved now, before its next evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """The trial as it is at this moment, after an evaluation or on its way: save it before asking for the next one."""

    eval_metrics: EvalMetrics
    """The losses; not numbers where the trial diverged, and between two evaluations, where a checkpoint was due."""
    diverged: bool
    """Whether a loss was not finite; the trial ends with this evaluation."""
    trainer: Trainer
    """Model, optimizer and progress."""

    def metrics(self) -> dict[str, float]:
        """Flat and finite numbers for a tuner: a loss that is none is left out, the best one is the last good one."""
        best, progress = self.trainer.progress.best_metrics, self.trainer.progress
        named = {
            **dataclasses.asdict(self.eval_metrics),
            "best_train_loss": best.train_loss if best else math.nan,
            "best_val_loss": best.val_loss if best else math.nan,
            "best_adj_val_loss": best.adj_val_loss if best else math.nan,
            "best_epoch": best.epoch if best else math.nan,
            "diverged": int(self.diverged),
            "tokens_per_second": progress.tokens_seen / progress.training_seconds,
        }
        return {name: value for name, value in named.items() if math.isfinite(value)}

    def save(self, folder: Path) -> None:
        """Writes a checkpoint of the trial into an empty folder."""
        trial = self.trainer
        checkpoint.save(
            folder, trial.config, trial.model, trial.optimizer, trial.corpus.tokenizer_files, trial.progress
        )


@dataclass
class Trainer:
    """A trial under way."""

    config: TrialConfig
    corpus: Corpus
    batches: Batches
    """The windows that it is trained on."""
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    progress: Progress
    precision: str
    on_step: OnStep
    dist_context: DistributedContext
    loss_fn: nn.Module
    """The model's summed loss, with gradients."""
    is_compiled: bool
    on_out_of_memory: OnOutOfMemory

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def train(self, epoch: int, steps: range, is_checkpoint_due: IsCheckpointDue) -> bool:
        """Optimizer steps of one epoch, both counted from 0, until a checkpoint is due; False: a loss was not finite.

        The order of the windows follows from (seed, epoch), dropout from (seed, step, rank).
        """
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.batches.windows))
        unread: list[tuple[Tensor, int]] = []
        started = time.perf_counter()
        for step in steps:
            indices = order[step * self.config.batch_size : (step + 1) * self.config.batch_size]
            unread.append(self._optimizer_step(indices, self.progress.step + len(unread)))
            if len(unread) < LOSS_CHECK_STEPS[self.device.type] and step != steps[-1]:
                continue
            losses = self.dist_context.all_reduce(torch.stack([nll for nll, _ in unread]).double()).tolist()
            self.progress.training_seconds += time.perf_counter() - started
            started = time.perf_counter()
            for nll, (_, tokens) in zip(losses, unread, strict=True):
                if not math.isfinite(nll):
                    return False
                self.progress.add_step(nll, tokens)
            self.on_step(self.progress.step_metrics(losses[-1] / unread[-1][1]))
            unread.clear()
            if step != steps[-1] and self.dist_context.broadcast(is_checkpoint_due()):
                break
        return True

    def _optimizer_step(self, indices: WindowIndices, step: int) -> tuple[Tensor, int]:
        """One optimizer step on one batch: this rank's summed loss of it, on the device, and all its tokens."""
        tokens = self.batches.windows.count_tokens(indices)
        while (total := self._accumulate_gradients(indices, step, tokens)) is None:
            self._reduce_micro_batch()
        if self.config.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.learning_rate_at(self.config, step, self.progress.total_steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, tokens

    def _accumulate_gradients(self, indices: WindowIndices, step: int, num_tokens: int) -> Tensor | None:
        """Makes those of a batch with so many tokens; this rank's summed loss of it, or None where memory ran out."""
        entropy = [self.config.seed, step, self.dist_context.rank]  # for rank 0, the same as without it
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        total = torch.zeros((), device=self.device)
        mine, size = self.dist_context.rank_windows(indices), self.progress.micro_batch_size
        starts = range(0, max(1, len(mine)), size)  # a rank without windows takes part all the same
        try:
            for start in starts:
                with gradient_sync(self.loss_fn, is_last=start == starts[-1]):
                    # of the gradients the ranks take the mean
                    nll = autocast_loss(self.loss_fn, *self.batches.get(mine[start : start + size]), self.precision)
                    (self.dist_context.world_size * nll / num_tokens).backward()  # type: ignore[no-untyped-call]
                total += nll.detach()
        except RuntimeError as error:
            if not is_out_of_memory(error) or self.progress.micro_batching.next_smaller is None:
                raise
            return None  # the error holds tensors of the frames that it came through, until here
        return total

    def _reduce_micro_batch(self) -> None:
        """Has the step that ran out of memory begin again with less, and all after it take no more.

        Raises:
            RestartError: if that cannot be in this place: other ranks are in the midst of the step, or its blocks are
                compiled.
        """
        smaller = self.progress.micro_batching.next_smaller
        assert smaller is not None
        self.on_out_of_memory(smaller)
        if self.dist_context.world_size > 1 or (self.is_compiled and smaller.recompute):
            raise RestartError(f"out of memory with {self.progress.micro_batching}; it goes on with {smaller}")
        self.optimizer.zero_grad(set_to_none=True)
        if smaller.recompute and not self.progress.recompute:
            models.enable_activation_checkpointing(self.model)
        self.progress.micro_batching = smaller
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            lower_mmap_threshold()

    def evaluate(self, epoch: int) -> EvalMetrics:
        """The losses now, in an epoch counted from 0."""
        length, micro_batch_size = self.config.context_length, self.progress.micro_batch_size
        val_loss = validation_loss(self.model, self.corpus, length, micro_batch_size, self.precision, self.dist_context)
        words = self.corpus.validation.num_words
        adjusted = val_loss * len(self.corpus.validation.tokens) / words
        progress = self.progress
        return EvalMetrics(epoch + 1, progress.step, progress.tokens_seen, progress.train_loss, val_loss, adjusted)


def finetune(
    config: TrialConfig,
    corpus: Corpus,
    source: models.ModelSource,
    *,
    device: str = "cpu",
    precision: str = "float32",
    micro_batching: MicroBatching | None = None,
    resume_from: Path | None = None,
    micro_batching_limit: MicroBatching | None = None,
    on_step: OnStep = lambda step: None,
    on_out_of_memory: OnOutOfMemory = lambda fit: None,
    is_checkpoint_due: IsCheckpointDue = lambda: False,
    dist_context: DistributedContext = SINGLE_PROCESS,
) -> Iterator[Evaluation]:
    """Fine-tunes one trial.

    A resumed trial ends with the numbers of an undisturbed one, bit for bit on a CPU with as many ranks and threads.

    Args:
        corpus: the dataset in the tokens of the model.
        source: where the model comes from.
        device: `cpu` or `cuda`.
        precision: `float32` or `bfloat16` (weights, loss and optimizer stay float32).
        fit: how a rank's share of a batch goes through its model; None: all at once. A resumed trial goes on as it
            began, with as many ranks.
        resume_from: a checkpoint of this trial to go on from.
        limit: what others like it have run out of memory above; it holds for a resumed trial too.
        on_step: told how it is going.
        on_smaller: told what the trial goes on with where it runs out of memory.
        checkpoint_due: asked whether to yield between two evaluations; of several ranks, the first one's is asked.
        ranks: with whom this process trains the trial. All must call this alike, and go on to its end: each yields the
            same, and one saves it.

    Yields:
        `evals_per_epoch` evaluations per epoch, and the trial on its way where a checkpoint is due; where a loss is no
        longer finite, one with `diverged` as the last.

    Raises:
        UserError: if the model cannot be loaded.
        WorkError: if `resume_from` is no checkpoint of this trial.
        RestartError: if it ran out of memory, and can go on with less of it from a checkpoint alone.
    """
    windows = build_training_windows(config, corpus)
    steps_per_epoch = -(-len(windows) // config.batch_size)
    micro_batching = micro_batching or MicroBatching(dist_context.max_rank_windows(config.batch_size))
    progress = Progress(
        steps_per_epoch * config.epochs,
        micro_batching.micro_batch_size,
        ranks=dist_context.world_size,
        recompute=micro_batching.recompute,
    )
    if resume_from is None:
        model = models.load_model(source, vocab_size=corpus.vocab_size, dropout=config.dropout, seed=config.seed)
    else:
        progress = checkpoint.load_progress(resume_from, config, progress.total_steps)
        if progress.ranks != dist_context.world_size:  # other bits in any case, and another need of memory
            progress.ranks, progress.micro_batching = dist_context.world_size, micro_batching
        model = models.load_pretrained(resume_from, config.run_name)
    progress.micro_batching = progress.micro_batching.clamp(micro_batching_limit)
    short_of_memory = progress.recompute or progress.micro_batch_size < dist_context.max_rank_windows(config.batch_size)
    if device == "cpu" and short_of_memory:
        lower_mmap_threshold()
    if progress.recompute:
        models.enable_activation_checkpointing(model)
    model.to(device).train()
    compiled = device == "cuda" and progress.total_steps >= MIN_STEPS_TO_COMPILE and layers.can_compile(model)
    if compiled:
        layers.compile_blocks(model)
    optimizer = optim.build_optimizer(config, model, compiled)
    if resume_from is not None:
        checkpoint.load_optimizer(resume_from, optimizer)
    loss = dist_context.build_loss(model)
    batches = Batches(windows, torch.device(device))
    trial = Trainer(
        config,
        corpus,
        batches,
        model,
        optimizer,
        progress,
        precision,
        on_step,
        dist_context,
        loss,
        compiled,
        on_out_of_memory,
    )

    stops = _evaluation_steps(steps_per_epoch, config.evals_per_epoch)
    while not progress.is_complete:
        epoch, done = divmod(progress.step, steps_per_epoch)
        if done == 0:
            progress.start_epoch()
        stop = next(stop for stop in stops if stop > done)
        healthy = trial.train(epoch, range(done, stop), is_checkpoint_due)
        if healthy and progress.step < epoch * steps_per_epoch + stop:
            yield Evaluation(_nan_metrics(epoch, progress), False, trial)
            continue
        measured = trial.evaluate(epoch) if healthy else _nan_metrics(epoch, progress)
        if measured.is_finite:
            progress.evaluations.append(measured)
        yield Evaluation(measured, not measured.is_finite, trial)
        if not measured.is_finite:
            return


def _nan_metrics(epoch: int, progress: Progress) -> EvalMetrics:
    return EvalMetrics(epoch + 1, progress.step, progress.tokens_seen, math.nan, math.nan, math.nan)


def _evaluation_steps(steps_per_epoch: int, num_evaluations: int) -> list[int]:
    """The steps of an epoch after which to evaluate, evenly spaced, the last one always."""
    return sorted({-(-steps_per_epoch * number // num_evaluations) for number in range(1, num_evaluations + 1)})
