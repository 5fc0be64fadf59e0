"""The loop: one trial's fine-tuning as a generator of evaluations. Knows no Ray.

B is the batch, T the context length. Losses are in nats.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from raylm import checkpoint, layers, manifest, memory, models, optim
from raylm.config import TrialConfig
from raylm.data import Corpus, Windows
from raylm.errors import WorkError
from raylm.progress import Measured, Progress, Step
from raylm.ranks import ALONE, Indices, Ranks, exchanging

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOOK_EVERY_STEPS = {"cpu": 1, "cuda": 10}
"""Steps between two looks at the loss: each makes a GPU wait; a diverged trial is noticed at the next."""
COMPILED_FROM_STEPS = 2000
"""Trials on a GPU of so many steps are compiled: estimated from half a minute of compiling, not measured."""
EVALUATION_TOKENS = 8192
"""Tokens that go through the model at a time in an evaluation, at least."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""The summed loss of inputs and targets, (B, T) each."""
OnStep = Callable[[Step], None]
"""Told how the trial is going at each look at its loss."""
CheckpointDue = Callable[[], bool]
"""Asked after each look at the loss whether the trial is to be saved now, before its next evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """The trial as it is at this moment, after an evaluation or on its way: save it before asking for the next one."""

    measured: Measured
    """The losses; not numbers where the trial diverged, and between two evaluations, where a checkpoint was due."""
    diverged: bool
    """Whether a loss was not finite; the trial ends with this evaluation."""
    trial: Trial
    """Model, optimizer and progress."""

    def metrics(self) -> dict[str, float]:
        """Flat and finite numbers for a tuner: a loss that is none is left out, the best one is the last good one."""
        best, progress = self.trial.progress.best, self.trial.progress
        named = {
            **dataclasses.asdict(self.measured),
            "best_val_loss": best.val_loss if best else math.nan,
            "best_adj_val_loss": best.adj_val_loss if best else math.nan,
            "best_epoch": best.epoch if best else math.nan,
            "diverged": int(self.diverged),
            "tokens_per_second": progress.tokens_seen / progress.training_seconds,
        }
        return {name: value for name, value in named.items() if math.isfinite(value)}

    def save(self, folder: Path) -> None:
        """Writes a checkpoint of the trial into an empty folder."""
        trial = self.trial
        checkpoint.save(
            folder, trial.config, trial.model, trial.optimizer, trial.corpus.tokenizer_files, trial.progress
        )


@dataclass
class Trial:
    """A trial under way."""

    config: TrialConfig
    corpus: Corpus
    model: PreTrainedModel
    optimizer: torch.optim.Optimizer
    progress: Progress
    precision: str
    on_step: OnStep
    ranks: Ranks
    loss: nn.Module
    """The model's summed loss, with gradients."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def training_windows(self) -> Windows:
        """The part of the train split that is trained on."""
        return training_windows(self.config, self.corpus)

    def train(self, epoch: int, steps: range, checkpoint_due: CheckpointDue) -> bool:
        """Optimizer steps of one epoch, both counted from 0, until a checkpoint is due; False: a loss was not finite.

        The order of the windows follows from (seed, epoch), dropout from (seed, step, rank).
        """
        windows = self.training_windows
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(windows))
        unread: list[tuple[Tensor, int]] = []
        started = time.perf_counter()
        for step in steps:
            indices = order[step * self.config.batch_size : (step + 1) * self.config.batch_size]
            unread.append(self._step(windows, indices, self.progress.step + len(unread)))
            if len(unread) < LOOK_EVERY_STEPS[self.device.type] and step != steps[-1]:
                continue
            losses = self.ranks.add_up(torch.stack([nll for nll, _ in unread]).double()).tolist()
            self.progress.training_seconds += time.perf_counter() - started
            started = time.perf_counter()
            for nll, (_, tokens) in zip(losses, unread, strict=True):
                if not math.isfinite(nll):
                    return False
                self.progress.add_step(nll, tokens)
            self.on_step(self.progress.at_step(losses[-1] / unread[-1][1]))
            unread.clear()
            if step != steps[-1] and self.ranks.agree(checkpoint_due()):
                break
        return True

    def _step(self, windows: Windows, indices: Indices, step: int) -> tuple[Tensor, int]:
        """One optimizer step on one batch: this rank's summed loss of it, on the device, and all its tokens."""
        entropy = [self.config.seed, step, self.ranks.rank]  # for rank 0, the same as without it
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        tokens = windows.token_count(indices)
        total = torch.zeros((), device=self.device)
        mine, size = self.ranks.share(indices), self.progress.micro_batch_size
        starts = range(0, max(1, len(mine)), size)  # a rank without windows takes part all the same
        for start in starts:
            with exchanging(self.loss, last=start == starts[-1]):
                # of the gradients the ranks take the mean
                nll = _nll(self.loss, windows, mine[start : start + size], self.device, self.precision)
                (self.ranks.size * nll / tokens).backward()  # type: ignore[no-untyped-call]
            total += nll.detach()
        if self.config.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = optim.learning_rate(self.config, step, self.progress.total_steps)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total, tokens

    def measure(self, epoch: int) -> Measured:
        """The losses now, in an epoch counted from 0."""
        length, micro_batch_size = self.config.context_length, self.progress.micro_batch_size
        val_loss = validation_loss(self.model, self.corpus, length, micro_batch_size, self.precision, self.ranks)
        words = self.corpus.validation.words
        adjusted = val_loss * len(self.corpus.validation.tokens) / words
        progress = self.progress
        return Measured(epoch + 1, progress.step, progress.tokens_seen, progress.train_loss, val_loss, adjusted)


def finetune(
    config: TrialConfig,
    corpus: Corpus,
    source: models.ModelSource,
    *,
    device: str = "cpu",
    precision: str = "float32",
    micro_batch_size: int | None = None,
    recompute: bool = False,
    resume_from: Path | None = None,
    on_step: OnStep = lambda step: None,
    checkpoint_due: CheckpointDue = lambda: False,
    ranks: Ranks = ALONE,
) -> Iterator[Evaluation]:
    """Fine-tunes one trial.

    A resumed trial ends with the numbers of an undisturbed one, bit for bit on a CPU with as many ranks and threads.

    Args:
        corpus: the dataset in the tokens of the model.
        source: where the model comes from.
        device: `cpu` or `cuda`.
        precision: `float32` or `bfloat16` (weights, loss and optimizer stay float32).
        micro_batch_size: windows that go through a rank's model at a time; None: all of a batch that it has.
        recompute: whether a block's activations are computed again in the backward pass, to the same numbers in less
            memory and more time.
        resume_from: a checkpoint of this trial to go on from.
        on_step: told how it is going.
        checkpoint_due: asked whether to yield between two evaluations; of several ranks, the first one's is asked.
        ranks: with whom this process trains the trial. All must call this alike, and go on to its end: each yields the
            same, and one saves it.

    Yields:
        `evals_per_epoch` evaluations per epoch, and the trial on its way where a checkpoint is due; where a loss is no
        longer finite, one with `diverged` as the last.

    Raises:
        UserError: if the model cannot be loaded.
        WorkError: if `resume_from` is no checkpoint of this trial.
    """
    steps_per_epoch = -(-len(training_windows(config, corpus)) // config.batch_size)
    micro_batch_size = micro_batch_size or ranks.largest_share(config.batch_size)
    progress = Progress(steps_per_epoch * config.epochs, micro_batch_size, ranks=ranks.size, recompute=recompute)
    if resume_from is None:
        model = models.load(source, vocabulary=corpus.vocabulary, dropout=config.dropout, seed=config.seed)
    else:
        progress = _progress_of(resume_from, config, progress.total_steps)
        if progress.ranks != ranks.size:  # other bits in any case, and another need of memory
            progress.ranks, progress.micro_batch_size, progress.recompute = ranks.size, micro_batch_size, recompute
        model = models.load_weights(resume_from, config.run_name)
    short_of_memory = progress.recompute or progress.micro_batch_size < ranks.largest_share(config.batch_size)
    if device == "cpu" and short_of_memory:
        memory.return_freed_blocks()
    if progress.recompute:
        models.recompute_activations(model)
    model.to(device).train()
    compiled = device == "cuda" and progress.total_steps >= COMPILED_FROM_STEPS and layers.can_compile(model)
    if compiled:
        layers.compile_blocks(model)
    optimizer = optim.make(config, model, compiled)
    if resume_from is not None:
        checkpoint.load_optimizer(resume_from, optimizer)
    trial = Trial(config, corpus, model, optimizer, progress, precision, on_step, ranks, ranks.loss_of(model))

    stops = _evaluation_steps(steps_per_epoch, config.evals_per_epoch)
    while not progress.finished:
        epoch, done = divmod(progress.step, steps_per_epoch)
        if done == 0:
            progress.start_epoch()
        stop = next(stop for stop in stops if stop > done)
        healthy = trial.train(epoch, range(done, stop), checkpoint_due)
        if healthy and progress.step < epoch * steps_per_epoch + stop:
            yield Evaluation(_not_measured(epoch, progress), False, trial)
            continue
        measured = trial.measure(epoch) if healthy else _not_measured(epoch, progress)
        if measured.finite:
            progress.evaluations.append(measured)
        yield Evaluation(measured, not measured.finite, trial)
        if not measured.finite:
            return


def validation_loss(
    model: PreTrainedModel,
    corpus: Corpus,
    context_length: int,
    micro_batch_size: int,
    precision: str,
    ranks: Ranks = ALONE,
) -> float:
    """Mean negative log-likelihood of the validation split's tokens, each counted once, in windows of this length."""
    windows = Windows(corpus.validation.tokens, context_length, corpus.end_of_text)
    at_once = max(micro_batch_size, EVALUATION_TOKENS // context_length)
    device = next(model.parameters()).device
    loss, mine = partial(models.summed_loss, model), ranks.share(np.arange(len(windows)))
    total = torch.zeros((), dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(mine), at_once):
            total += _nll(loss, windows, mine[start : start + at_once], device, precision)
    model.train(was_training)
    return ranks.add_up(total).item() / len(windows.tokens)


def _nll(loss: Loss, windows: Windows, indices: Indices, device: torch.device, precision: str) -> Tensor:
    """Summed loss of these windows."""
    tensors = [torch.from_numpy(array) for array in windows.batch(indices)]
    if device.type == "cuda":  # pinned, so that nothing waits for the copy
        tensors = [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]
    inputs_BT, targets_BT = tensors
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        return loss(inputs_BT, targets_BT)


def training_windows(config: TrialConfig, corpus: Corpus) -> Windows:
    """The part of the train split that a trial is trained on."""
    return Windows(corpus.train.tokens[: config.max_train_tokens], config.context_length, corpus.end_of_text)


def _not_measured(epoch: int, progress: Progress) -> Measured:
    return Measured(epoch + 1, progress.step, progress.tokens_seen, math.nan, math.nan, math.nan)


def _evaluation_steps(steps_per_epoch: int, evaluations: int) -> list[int]:
    """The steps of an epoch after which to evaluate, evenly spaced, the last one always."""
    return sorted({-(-steps_per_epoch * number // evaluations) for number in range(1, evaluations + 1)})


def _progress_of(folder: Path, config: TrialConfig, total_steps: int) -> Progress:
    content = manifest.verify(folder)
    if content is None or content["trial_id"] != config.id:
        raise WorkError(f"{folder} is no checkpoint of trial {config.run_name}")
    progress = Progress.from_dict(content["progress"])
    if progress.total_steps != total_steps:
        was, now = progress.total_steps, total_steps
        raise WorkError(f"{folder} is of a trial of {was:,} steps, not {now:,}: its data changed since")
    return progress
