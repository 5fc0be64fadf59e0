"""Scaling of the loss in float16: gradients do not underflow, and a step whose gradients overflow is skipped."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from raylm.results.progress import LossScale

GROWTH_FACTOR, BACKOFF_FACTOR, GROWTH_STEPS = 2.0, 0.5, 2000
"""Factors of the scale after `GROWTH_STEPS` steps without an overflow, and after one with; those of
`torch.amp.GradScaler`."""
MAX_OVERFLOWS = 25
"""Overflows in a row from which a trial has diverged: the scale has fallen by a factor of 2^25 without any effect."""


class LossScaler:
    """Scale of a trial's loss, with the rule and the arithmetic of `torch.amp.GradScaler`.

    Its state is in tensors that each step updates in place, so that a step with it can be captured in a CUDA graph; the
    host learns of skipped steps when it reads the losses. (`GradScaler` keeps the stage of a step on the host, and
    cannot go on after a capture that failed.)
    """

    def __init__(self, state: LossScale, device: torch.device) -> None:
        """Create the scaler in a state."""
        self._scale = torch.full((), state.scale, device=device)
        self._good_steps = torch.full((), state.good_steps, dtype=torch.int32, device=device)
        self._num_skipped = torch.full((), state.skipped_steps, dtype=torch.int32, device=device)
        self._found_inf = torch.zeros((), device=device)
        self._state = state
        self._marks: list[Tensor] = []  # numbers of skipped steps after each step not read yet

    def scale(self, loss: Tensor) -> Tensor:
        """Return a loss, in float32, whose gradients are larger by the present scale."""
        return loss * self._scale

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients of a whole step by the scale, in place, and find out if one of them is not finite.

        Gradients of several ranks must have been exchanged before, so that all ranks come to the same decision.
        """
        self._found_inf.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found_inf, self._scale.reciprocal())

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Run an optimizer's step, unless a gradient is not finite, and update the scale.

        An optimizer that can skip a step on the device (in torch's protocol, by the attribute `found_inf`) does so;
        for others, the host reads the decision.
        """
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.grad_scale, optimizer.found_inf = None, self._found_inf  # type: ignore[attr-defined]
            try:
                optimizer.step()
            finally:
                del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]
        elif not self._found_inf.item():
            optimizer.step()
        self._num_skipped.add_(self._found_inf != 0)
        torch._amp_update_scale_(
            self._scale, self._good_steps, self._found_inf, GROWTH_FACTOR, BACKOFF_FACTOR, GROWTH_STEPS
        )

    def mark(self) -> None:
        """Mark the end of a step, for `read`; the host does not wait."""
        self._marks.append(self._num_skipped.clone())

    def read(self, losses: Sequence[float]) -> list[LossScale]:
        """Return the states after the steps since the last call, which waits for the device.

        All have the present scale. A step counts as an overflow if it was skipped or its loss is not finite.

        Args:
            losses: losses of these steps.
        """
        scale, good_steps, *counts = torch.stack([self._scale, self._good_steps, *self._marks]).double().tolist()
        self._marks.clear()
        states = []
        for loss, count in zip(losses, map(int, counts), strict=True):
            has_overflow = count > self._state.skipped_steps or not math.isfinite(loss)
            in_a_row = self._state.overflows_in_a_row + 1 if has_overflow else 0
            self._state = LossScale(scale, int(good_steps), count, in_a_row)
            states.append(self._state)
        return states
