"""Adafactor with an absolute step: one parameter at a time on a CPU, stacks of parameters of equal shape on a GPU.

Stacks are updated by Triton kernels (adafactor_launch.py) where Triton is, else by operations of torch (stacks.py).

S is the number of parameters of a stack; R and C are the rows and columns of a matrix, N the elements of a vector.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from raylm.training import layers
from raylm.training.device import ABILITIES
from raylm.training.optim.stacks import DECAY, EPS, Number, StackUpdate, clip_lr, update_stack

CACHE_BLOCK_ELEMENTS = 2**19
"""Elements of a block of a matrix of which several fit into a processor's cache."""
MAX_STACK_ELEMENTS = 2**26
"""Elements of a stack, unless a single parameter has more: 256 MiB of gradients are copied at a time."""


@dataclass(frozen=True)
class _Stack:
    """Parameters of one shape, and their second moments in tensors of which each parameter's state is a view."""

    parameters: list[Tensor]
    moments: list[Tensor]
    """Means of rows (S, ..., R) and of columns (S, ..., C) of matrices, or the second moment (S, N) of vectors."""
    step: Tensor
    """Number of steps so far, an integer on the device: the state of all parameters that have made equally many."""


class Adafactor(torch.optim.Optimizer):
    """Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) with an absolute step size: the learning rate.

    Without parameter scaling, relative step and momentum, as transformers'
    `Adafactor(scale_parameter=False, relative_step=False)`. `torch.optim.Adafactor` always scales the step by the
    root mean square of the parameter, so that the same learning rate means something else there.

    The second moment of a matrix is stored as the means of its rows and columns, in float32. No operation synchronizes
    with the device. A step of stacks can be captured in a CUDA graph if `lr` is a tensor.

    While stacks have an attribute `found_inf`, a float32 scalar tensor, a step changes nothing unless it is 0: torch's
    protocol of a skipped step, which the host does not wait for.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float = 0.0,
        *,
        stacked: bool | None = None,
        fused: bool = False,
        max_grad_norm: float = 0.0,
    ) -> None:
        """Create the optimizer, with parameters or groups of them as in `torch.optim`.

        Args:
            params: parameters, or parameter groups with their own `lr` and `weight_decay`.
            lr: root mean square of a step, at most; with stacks, `lr` of a group may be set to a tensor.
            weight_decay: decoupled decay per unit of learning rate.
            stacked: update the parameters of a shape together, in a fifteenth of the kernels. None: unless they are on
                a CPU, where blocks that fit into the cache are faster.
            fused: update stacks by Triton kernels, in less than half of the memory traffic; see `can_fuse`.
            max_grad_norm: with `fused`, norm of all gradients above which a step is that of gradients scaled down to
                it; the gradients themselves stay. 0: none.
        """
        if max_grad_norm and not fused:
            raise ValueError("max_grad_norm needs fused=True; clip the gradients before the step instead")
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._stacked, self._fused, self._max_grad_norm = stacked, fused, max_grad_norm
        self._stacks: dict[tuple[int, ...], list[_Stack]] = {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; the next step stacks it anew."""
        super().load_state_dict(state_dict)
        self._stacks.clear()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters that have a gradient; return the loss of the closure, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates: list[StackUpdate] = []
        for group in self.param_groups:
            parameters = self._initialize(group["params"])
            if self._has_stacks(parameters):
                updates += self._count_step(parameters, group["lr"], group["weight_decay"])
                continue
            if group["weight_decay"] and parameters:
                torch._foreach_sub_(parameters, parameters, alpha=group["weight_decay"] * group["lr"])
            for parameter in parameters:
                self._update_parameter(parameter, group["lr"])
        self._update_stacks(updates)
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """True if a step follows `found_inf`; the name is torch's."""
        return any(self._has_stacks(group["params"]) for group in self.param_groups)

    def _has_stacks(self, parameters: Sequence[Tensor]) -> bool:
        on_cpu = all(parameter.is_cpu for parameter in parameters)
        return self._fused or (not on_cpu if self._stacked is None else self._stacked)

    def _initialize(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return the parameters that have a gradient, whose state is created at their first step."""
        chosen = []
        for parameter in parameters:
            state, grad = self.state[parameter], parameter.grad
            if grad is None:
                continue
            if not state and grad.dim() < 2:
                state.update(step=0, second_moment=torch.zeros_like(grad))
            elif not state:
                state.update(step=0, row=torch.zeros_like(grad[..., 0]), column=torch.zeros_like(grad[..., 0, :]))
            chosen.append(parameter)
        return chosen

    def _update_parameter(self, parameter: Tensor, lr: float) -> None:
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        state["step"] += 1
        weight = math.pow(state["step"], -DECAY)
        if grad.dim() < 2:
            update_vector(parameter.detach(), grad, state["second_moment"], lr, weight)
        else:
            update_matrix(parameter.detach(), grad, state["row"], state["column"], lr, weight)

    def _find_stacks(self, parameters: Sequence[Tensor]) -> list[_Stack]:
        """Return the stacks of parameters, built when these parameters first have a gradient together."""
        key = tuple(map(id, parameters))
        if key not in self._stacks:
            used = set(key)  # a state is a view of one stack only
            self._stacks = {ids: stacks for ids, stacks in self._stacks.items() if used.isdisjoint(ids)}
            self._stacks[key] = list(self._build_stacks(parameters))
        return self._stacks[key]

    def _build_stacks(self, parameters: Sequence[Tensor]) -> Iterator[_Stack]:
        """Yield stacks of parameters of the same shape and step; unless fused, of at most `MAX_STACK_ELEMENTS` each."""
        groups, steps = defaultdict(list), dict[tuple[torch.device, int], Tensor]()
        for parameter in parameters:
            count = self.state[parameter]["step"]  # a tensor, if it has been in a stack
            count = int(count.item()) if isinstance(count, Tensor) else count
            groups[parameter.shape, parameter.device, count].append(parameter)
        for (_, device, count), group in groups.items():
            step = steps.setdefault((device, count), torch.full((), count, device=device))
            size = len(group) if self._fused else max(1, MAX_STACK_ELEMENTS // group[0].numel())
            for start in range(0, len(group), size):
                yield self._build_stack(group[start : start + size], step)

    def _build_stack(self, parameters: list[Tensor], step: Tensor) -> _Stack:
        """Move the second moments of parameters into a stack."""
        names = ("second_moment",) if "second_moment" in self.state[parameters[0]] else ("row", "column")
        moments = [torch.stack([self.state[parameter][name] for parameter in parameters]) for name in names]
        for number, parameter in enumerate(parameters):
            views = {name: moment[number] for name, moment in zip(names, moments, strict=True)}
            self.state[parameter].update(views, step=step)
        return _Stack(parameters, moments, step)

    def _count_step(self, parameters: Sequence[Tensor], lr: Number, weight_decay: float) -> list[StackUpdate]:
        """Count a step of parameters; return the updates of their stacks."""
        stacks = self._find_stacks(parameters)
        steps = {id(stack.step): stack.step for stack in stacks}
        found_inf = self._found_inf
        count: int | Tensor = 1 if found_inf is None else found_inf == 0
        weights = {key: _decay_weight(step.add_(count)) for key, step in steps.items()}
        updates = []
        for stack in stacks:
            detached = [parameter.detach() for parameter in stack.parameters]
            gradients = [p.grad.contiguous() for p in stack.parameters if p.grad is not None]
            numbers = weights[id(stack.step)], lr, float(weight_decay)
            updates.append(StackUpdate(detached, gradients, stack.moments, *numbers))
        return updates

    def _update_stacks(self, updates: Sequence[StackUpdate]) -> None:
        if self._fused and updates:
            from raylm.training.optim import adafactor_launch

            adafactor_launch.update_stacks(updates, self._max_grad_norm, self._found_inf)
            return
        for update in updates:
            update_stack(update, self._found_inf)

    @property
    def _found_inf(self) -> Tensor | None:
        return getattr(self, "found_inf", None)


def can_fuse(parameters: Sequence[Tensor]) -> bool:
    """Return whether `fused` is possible: all parameters on a GPU, contiguous and float32, with Triton installed."""
    usable = (p.is_cuda and p.is_contiguous() and p.dtype == torch.float32 for p in parameters)
    return bool(parameters) and all(usable) and layers.has_triton()


def _decay_weight(step: Tensor) -> Tensor:
    """Return the weight of the new second moments at a step, a float32 scalar on its device."""
    wide = step.double() if ABILITIES[step.device.type].has_float64 else step.float()
    return wide.pow_(-DECAY).float()


# ---- updates of one parameter -------------------------------------------------------------------------------------


def update_vector(param: Tensor, grad: Tensor, second_moment: Tensor, lr: float, lerp_weight: Number) -> None:
    """Update the running second moment, then subtract the gradient divided by its square root."""
    second_moment.lerp_(grad.square().add_(EPS), lerp_weight)
    update = second_moment.rsqrt().mul_(grad)
    param.sub_(update.mul_(clip_lr(lr, update.square().mean())))


def update_matrix(
    param: Tensor, grad: Tensor, row_moment: Tensor, column_moment: Tensor, lr: float, lerp_weight: Number
) -> None:
    """Update a matrix, with a second moment (..., R, C) factored into its row (..., R) and column means (..., C).

    Makes three passes over the gradient (for the moments, the size of the update, and the update), in blocks of rows
    that fit into a processor's cache, so that no tensor of the size of the parameter is allocated.
    """
    num_rows = grad.shape[-2]
    size = max(1, CACHE_BLOCK_ELEMENTS * num_rows // grad.numel())
    blocks = torch.split(grad, size, dim=-2)
    squared = map(torch.square, blocks)  # lazily, one block at a time
    means, sums = zip(*((block.mean(dim=-1), block.sum(dim=-2)) for block in squared), strict=True)
    row_moment.lerp_(torch.cat(means, dim=-1).add_(EPS), lerp_weight)
    column_moment.lerp_(torch.stack(sums).sum(dim=0).div_(num_rows).add_(EPS), lerp_weight)
    row_factor, column_factor = (row_moment / row_moment.mean(dim=-1, keepdim=True)).rsqrt_(), column_moment.rsqrt()
    squares = torch.cat([block.square() @ column_factor.square().unsqueeze(-1) for block in blocks], dim=-2)
    mean_square = (squares * row_factor.square().unsqueeze(-1)).mean() / grad.shape[-1]
    scaled = torch.split((row_factor * clip_lr(lr, mean_square)).unsqueeze(-1), size, dim=-2)
    for param_block, block, factor in zip(torch.split(param, size, dim=-2), blocks, scaled, strict=True):
        param_block.addcmul_(block * column_factor.unsqueeze(-2), factor, value=-1)
