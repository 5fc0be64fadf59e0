"""CUDA graph of a whole optimizer step: recorded once, then launched for each batch of the same shape.

A step of GPT-2 is about a thousand kernels, each of which the host launches in some 15 microseconds; small models and
batches leave a GPU waiting for the host. A graph launches them all at once. It consists of the kernels of the ordinary
step, and reads its windows, its number of tokens and its learning rate from the same memory at each launch, so that the
numbers are those of the ordinary step. The generator's seed and offset are read at each launch too: dropout draws the
masks of the ordinary step.

The memory of a recorded step stays reserved as long as the graph exists. It is therefore released where other work
needs the memory: before a batch of another shape, such as the last one of an epoch, and before an evaluation.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from raylm.errors import summarize
from raylm.training.device import ABILITIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from raylm.training.options import ExecutionOptions


WARMUP_STEPS = 2
"""Ordinary steps of a shape before it is recorded: the first one allocates the optimizer's state and compiles."""
MIN_LAUNCHES = 10
"""Steps until the next release from which recording pays: it takes the host about as long as a few ordinary steps."""

MicroBatches = Sequence[tuple[Tensor, Tensor]]
"""Inputs and targets of each micro-batch of a step."""
RunStep = Callable[[MicroBatches], Tensor]
"""Function that runs a whole step, without waiting for the device, and returns its summed loss as a scalar."""


class StepNumbers:
    """Number of tokens and learning rate of a step; on a GPU in its memory, where a recorded step finds them."""

    num_tokens: int | Tensor
    """Tokens of the whole batch, over all ranks."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device | None) -> None:
        """Create the numbers: tensors on a device, which become the learning rate of all groups, or Python's (None)."""
        self._optimizer = optimizer
        self._learning_rate: Tensor | None = None
        if device is not None:
            self.num_tokens, self._learning_rate = torch.zeros(2, device=device).unbind()
            self._assign(self._learning_rate)

    def set(self, num_tokens: int, learning_rate: float) -> None:
        """Set the numbers for the next step; the host does not wait for a GPU."""
        if self._learning_rate is None or not isinstance(self.num_tokens, Tensor):
            self.num_tokens = num_tokens
            self._assign(learning_rate)
        else:
            self.num_tokens.fill_(num_tokens)
            self._learning_rate.fill_(learning_rate)

    def _assign(self, learning_rate: float | Tensor) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate


class Recording(Protocol):
    """Recorded step."""

    loss: Tensor
    """Summed loss of the last launch, overwritten by the next one."""

    def launch(self) -> None:
        """Run the step again, with the present values of the tensors that it reads."""

    def release(self) -> None:
        """Free the memory of the step."""


class CudaRecording:
    """Step as a CUDA graph."""

    def __init__(self, run: Callable[[], Tensor]) -> None:
        """Record a step, without running it.

        Raises:
            RuntimeError: if memory runs out, or the step waits for the device.
        """
        self._graph = torch.cuda.CUDAGraph()
        torch._C._cuda_clearCublasWorkspaces()  # of ordinary steps; the recorded one has its own
        # the outer context restores the stream if the inner one fails to; other threads may wait for the device
        capture = torch.cuda.graph(self._graph, capture_error_mode="thread_local")
        try:
            with torch.cuda.stream(torch.cuda.current_stream()), capture:
                self.loss = run()
        finally:
            torch._C._cuda_clearCublasWorkspaces()

    def launch(self) -> None:
        """Run the step in the current stream."""
        self._graph.replay()

    def release(self) -> None:
        """Free the memory of the step."""
        torch.cuda.synchronize()
        self._graph.reset()
        torch.cuda.empty_cache()


class StepGraph:
    """Recording of an optimizer step, made when a shape of batches has been seen and enough of them are to come."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        record: Callable[[Callable[[], Tensor]], Recording] = CudaRecording,
    ) -> None:
        """Create it without a recording."""
        self._optimizer, self._record_step = optimizer, record
        self._recording: Recording | None = None
        self._micro_batches: MicroBatches = ()
        self._shape: tuple[torch.Size, ...] = ()
        self._num_seen = 0
        self._is_available = True
        self.steps_left = 0
        """Steps until the next release, counted down by `launch`."""

    def launch(self, micro_batches: MicroBatches, run_step: RunStep) -> Tensor | None:
        """Run a step by a launch of its recording; return its summed loss, or None if it has to run in the usual way.

        Nothing has changed if the result is None. The numbers of the step and the seed must be set before.

        Args:
            micro_batches: windows of the step, copied to where the recording reads them.
            run_step: the step to record, if that is due.
        """
        shape = tuple(inputs_BT.shape for inputs_BT, _ in micro_batches)
        if shape != self._shape:
            self.release()
            self._shape, self._num_seen = shape, 0
        is_due = self._num_seen >= WARMUP_STEPS and self.steps_left >= MIN_LAUNCHES
        self._num_seen, self.steps_left = self._num_seen + 1, self.steps_left - 1
        if self._recording is None and self._is_available and is_due:
            self._record(micro_batches, run_step)
        if self._recording is None:
            return None
        for batch, recorded in zip(micro_batches, self._micro_batches, strict=True):
            for tensor, target in zip(batch, recorded, strict=True):
                target.copy_(tensor)
        self._recording.launch()
        return self._recording.loss.clone()

    def _record(self, micro_batches: MicroBatches, run_step: RunStep) -> None:
        """Record a step; if that fails, all further ones run in the usual way."""
        self._micro_batches = [(inputs_BT.clone(), targets_BT.clone()) for inputs_BT, targets_BT in micro_batches]
        for group in self._optimizer.param_groups:
            if "capturable" in group:  # AdamW
                group["capturable"] = True
        try:
            self._recording = self._record_step(lambda: run_step(self._micro_batches))
        except Exception as error:  # the same step has just run in the usual way, and can go on so
            self._is_available = False
            cause = summarize(error.__context__ or error)  # the end of a failed recording is an error of its own
            warnings.warn(f"steps run without a CUDA graph: {cause}", stacklevel=2)
        for group in self._optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = False
        if self._recording is None:  # the error, whose traceback holds tensors, is gone
            self._optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()  # no-op without a GPU

    def release(self) -> None:
        """Free the recording, if there is one; the next steps run in the usual way."""
        if self._recording is not None:
            self._recording.release()
        self._recording, self._micro_batches, self._shape = None, (), ()


def can_record(model: PreTrainedModel, options: ExecutionOptions, world_size: int) -> bool:
    """Return whether steps of a model may be recorded: of GPT-2, which never waits for the GPU, on a single one."""
    return ABILITIES[options.device].has_cuda and world_size == 1 and model.config.model_type == "gpt2"
