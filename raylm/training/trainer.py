"""Running trial: the optimizer steps between two evaluations. Does not depend on Ray.

B is the batch, T the context length. Losses are in nats.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from raylm.config.trial import TrialConfig
from raylm.data.corpus import Corpus, WindowIndices
from raylm.errors import RestartError, is_out_of_memory
from raylm.results.progress import EvalMetrics, LossScale, Progress
from raylm.training import models
from raylm.training.batches import Batches
from raylm.training.device import ABILITIES, free_gpu_memory, return_freed_blocks, to_float64
from raylm.training.distributed import DistributedContext, gradient_sync
from raylm.training.optim.loss_scaler import MAX_OVERFLOWS, LossScaler
from raylm.training.optim.schedule import learning_rate_at
from raylm.training.options import ExecutionOptions, TrainingHooks
from raylm.training.step_graph import MicroBatches, StepGraph, StepNumbers, can_record
from raylm.training.validation import autocast_loss, validation_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Trainer:
    """Running trial: model, optimizer, data and progress."""

    config: TrialConfig
    corpus: Corpus
    batches: Batches
    """Windows of the train split."""
    model: PreTrainedModel
    loss_fn: nn.Module
    """Summed loss of the model; its gradients are averaged over the ranks."""
    optimizer: torch.optim.Optimizer
    progress: Progress
    options: ExecutionOptions
    hooks: TrainingHooks
    dist_context: DistributedContext
    is_compiled: bool

    def __post_init__(self) -> None:
        """Prepare the recording of steps, where it is possible."""
        device = torch.device(self.options.device)
        self._abilities = ABILITIES[device.type]
        self._numbers = StepNumbers(self.optimizer, device if self._abilities.has_cuda else None)
        self._step_graph: StepGraph | None = None
        if can_record(self.model, self.options, self.dist_context.world_size):
            self._step_graph = StepGraph(self.optimizer)
        self._scaler: LossScaler | None = None
        if self.options.precision == "float16":
            self._scaler = LossScaler(self.progress.loss_scale or LossScale(), device)

    def train(self, epoch: int, steps: range) -> bool:
        """Train for some steps of an epoch, both counted from 0, or until a checkpoint is due.

        The order of the windows depends on (seed, epoch), dropout on (seed, step, rank).

        Returns:
            False if a loss was not finite; in float16, if steps have overflowed `MAX_OVERFLOWS` times in a row.
        """
        if self._step_graph is None:
            return self._train(epoch, steps)
        self._step_graph.steps_left = len(steps)
        try:
            return self._train(epoch, steps)
        finally:
            self._step_graph.release()

    def _train(self, epoch: int, steps: range) -> bool:
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.batches.windows))
        pending: list[tuple[Tensor, int]] = []  # losses not read yet
        start_time = time.perf_counter()
        for step in steps:
            indices = order[step * self.config.batch_size : (step + 1) * self.config.batch_size]
            pending.append(self._optimizer_step(indices, self.progress.step + len(pending)))
            if len(pending) < self._abilities.loss_check_steps and step != steps[-1]:
                continue
            losses = self.dist_context.all_reduce(to_float64(torch.stack([nll for nll, _ in pending]))).tolist()
            self.progress.training_seconds += time.perf_counter() - start_time
            start_time = time.perf_counter()
            if not self._add_steps(losses, [num_tokens for _, num_tokens in pending]):
                return False
            means = [nll / num_tokens for nll, (_, num_tokens) in zip(losses, pending, strict=True)]
            self.hooks.on_step(self.progress.step_metrics(next(filter(math.isfinite, reversed(means)), math.nan)))
            pending.clear()
            if step != steps[-1] and self.dist_context.broadcast(self.hooks.is_checkpoint_due()):
                break
        return True

    def _add_steps(self, losses: Sequence[float], tokens: Sequence[int]) -> bool:
        """Count steps with their summed losses and tokens, up to the one at which the trial diverges; return if not."""
        states = self._scaler.read(losses) if self._scaler else [None] * len(losses)
        for nll, num_tokens, state in zip(losses, tokens, states, strict=True):
            if state is None and not math.isfinite(nll):
                return False
            if state is not None:
                self.progress.loss_scale = state
                if state.overflows_in_a_row >= MAX_OVERFLOWS:
                    return False
            self.progress.add_step(nll, num_tokens)
        return True

    def _optimizer_step(self, indices: WindowIndices, step: int) -> tuple[Tensor, int]:
        """Run one optimizer step on a batch; return this rank's summed loss, on the device, and the batch's tokens."""
        num_tokens = self.batches.windows.count_tokens(indices)
        self._numbers.set(num_tokens, learning_rate_at(self.config, step, self.progress.total_steps))
        while (total_nll := self._try_step(indices, step)) is None:
            self._reduce_micro_batch()
        if self._scaler is not None:
            self._scaler.mark()
        return total_nll, num_tokens

    def _try_step(self, indices: WindowIndices, step: int) -> Tensor | None:
        """Run one optimizer step; return this rank's summed loss, or None if memory ran out before the update."""
        entropy = [self.config.seed, step, self.dist_context.rank]  # a trailing 0, of rank 0, changes no seed
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        rank_indices, size = self.dist_context.rank_windows(indices), self.progress.micro_batch_size
        starts = range(0, max(1, len(rank_indices)), size)  # a rank without windows takes part in the exchange
        try:
            micro_batches = [self.batches.get(rank_indices[start : start + size]) for start in starts]
            if self._step_graph is not None and not self.progress.recompute:
                total_nll = self._step_graph.launch(micro_batches, self._run_step)
                if total_nll is not None:
                    return total_nll
            total_nll = self._accumulate_gradients(micro_batches)
        except RuntimeError as error:
            if not is_out_of_memory(error) or self.options.next_smaller(self.progress.micro_batching) is None:
                raise
            return None  # the caller frees memory: until this return, the error's traceback holds tensors
        self._update()
        return total_nll

    def _run_step(self, micro_batches: MicroBatches) -> Tensor:
        """Run one optimizer step; return its summed loss."""
        total_nll = self._accumulate_gradients(micro_batches)
        self._update()
        return total_nll

    def _accumulate_gradients(self, micro_batches: MicroBatches) -> Tensor:
        """Accumulate the gradients of a batch; return this rank's summed loss."""
        total_nll = torch.zeros((), device=self.options.device)
        for number, batch in enumerate(micro_batches, start=1):
            with gradient_sync(self.loss_fn, is_last=number == len(micro_batches)):
                nll = autocast_loss(self.loss_fn, *batch, self.options.precision)
                # gradients are averaged over the ranks, hence the factor
                mean_nll = self.dist_context.world_size * nll / self._numbers.num_tokens
                if self._scaler is not None:
                    mean_nll = self._scaler.scale(mean_nll)
                mean_nll.backward()  # type: ignore[no-untyped-call]
            total_nll += nll.detach()
        return total_nll

    def _update(self) -> None:
        """Update the weights by the gradients, clipped by the optimizer, and free these."""
        if self._scaler is not None:  # all gradients are those of the ranks together
            self._scaler.unscale([p.grad for p in self.model.parameters() if p.grad is not None])
            self._scaler.step(self.optimizer)
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _reduce_micro_batch(self) -> None:
        """Switch to a smaller micro-batching for the step that ran out of memory and all later ones.

        Raises:
            RestartError: if this needs a restart from a checkpoint: other ranks are in the middle of the step, or the
                blocks are compiled.
        """
        smaller = self.options.next_smaller(self.progress.micro_batching)
        assert smaller is not None
        self.hooks.on_out_of_memory(smaller)
        if self.dist_context.world_size > 1 or (self.is_compiled and smaller.recompute):
            raise RestartError(f"out of memory with {self.progress.micro_batching}; resuming with {smaller}")
        self.optimizer.zero_grad(set_to_none=True)
        if smaller.recompute and not self.progress.recompute:
            models.enable_activation_checkpointing(self.model)
        self.progress.micro_batching = smaller
        if self.options.device == "cpu":
            return_freed_blocks()
        free_gpu_memory(self.options.device)

    def evaluate(self, epoch: int) -> EvalMetrics:
        """Return the current losses, in an epoch counted from 0."""
        val_loss, progress = self.validation_loss(), self.progress
        losses = progress.train_loss, val_loss, self.corpus.validation.per_word(val_loss)
        return EvalMetrics(epoch + 1, progress.step, progress.tokens_seen, *losses, self.options.precision)

    def validation_loss(self) -> float:
        """Return the current loss on the validation split, in nats per token."""
        length, size, precision = self.config.context_length, self.progress.micro_batch_size, self.options.precision
        return validation_loss(self.model, self.corpus, length, size, precision, self.dist_context)
