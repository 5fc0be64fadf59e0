"""Adafactor with an absolute step: one parameter at a time on a CPU, stacks of parameters of equal shape on a GPU.

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

from raylm.training.device import ABILITIES

Number = float | Tensor
"""Number of a step: a Python float, or a float32 scalar on the device, which a CUDA graph reads at each launch."""

DECAY = 0.8
"""Exponent d of the second moment's decay: the old value has the weight 1 - step^-d."""
EPS = 1e-30
"""Added to squared gradients, to avoid a division by zero."""
CLIP = 1.0
"""Maximum root mean square of an update, in units of the learning rate."""

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
        compiled: bool = False,
        stacked: bool | None = None,
    ) -> None:
        """Create the optimizer, with parameters or groups of them as in `torch.optim`.

        Args:
            params: parameters, or parameter groups with their own `lr` and `weight_decay`.
            lr: root mean square of a step, at most; with stacks, `lr` of a group may be set to a tensor.
            weight_decay: decoupled decay per unit of learning rate.
            compiled: fuse the operations on a stack with `torch.compile`, once per shape.
            stacked: update the parameters of a shape together, in a fifteenth of the kernels. None: unless they are on
                a CPU, where blocks that fit into the cache are faster.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._compiled, self._stacked = compiled, stacked
        self._stacks: dict[tuple[int, ...], list[_Stack]] = {}
        self._update_vectors, self._update_matrices = update_vectors, update_matrices
        if compiled:
            self._update_vectors = torch.compile(update_vectors, dynamic=False)
            self._update_matrices = torch.compile(update_matrices, dynamic=False)

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
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                self._initialize(parameter)
            if self._has_stacks(parameters):
                self._update_stacks(parameters, group["lr"], group["weight_decay"])
                continue
            if group["weight_decay"] and parameters:
                torch._foreach_sub_(parameters, parameters, alpha=group["weight_decay"] * group["lr"])
            for parameter in parameters:
                self._update_parameter(parameter, group["lr"])
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """True if a step follows `found_inf`; the name is torch's."""
        return any(self._has_stacks(group["params"]) for group in self.param_groups)

    def _has_stacks(self, parameters: Sequence[Tensor]) -> bool:
        on_cpu = all(parameter.is_cpu for parameter in parameters)
        return not on_cpu if self._stacked is None else self._stacked

    def _initialize(self, parameter: Tensor) -> None:
        """Create the state of a parameter at its first step."""
        state, grad = self.state[parameter], parameter.grad
        assert grad is not None
        if not state and grad.dim() < 2:
            state.update(step=0, second_moment=torch.zeros_like(grad))
        elif not state:
            state.update(step=0, row=torch.zeros_like(grad[..., 0]), column=torch.zeros_like(grad[..., 0, :]))

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
        """Yield stacks of parameters of the same shape and step, of at most `MAX_STACK_ELEMENTS` each."""
        groups, steps = defaultdict(list), dict[tuple[torch.device, int], Tensor]()
        for parameter in parameters:
            count = self.state[parameter]["step"]  # a tensor, if it has been in a stack
            count = int(count.item()) if isinstance(count, Tensor) else count
            groups[parameter.shape, parameter.device, count].append(parameter)
        for (_, device, count), group in groups.items():
            step = steps.setdefault((device, count), torch.full((), count, device=device))
            size = max(1, MAX_STACK_ELEMENTS // group[0].numel())
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

    def _update_stacks(self, parameters: Sequence[Tensor], lr: Number, weight_decay: float) -> None:
        stacks = self._find_stacks(parameters)
        steps = {id(stack.step): stack.step for stack in stacks}
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        is_skipped = None if found_inf is None else found_inf != 0
        count: int | Tensor = 1 if is_skipped is None else ~is_skipped
        weights = {key: _decay_weight(step.add_(count)) for key, step in steps.items()}
        decay = weight_decay * lr if weight_decay else None
        if decay is not None and is_skipped is not None:
            decay = decay * ~is_skipped
        for stack in stacks:
            self._update_stack(stack, lr, weights[id(stack.step)], decay, is_skipped)

    def _update_stack(
        self, stack: _Stack, lr: Number, weight: Tensor, decay: Number | None, is_skipped: Tensor | None
    ) -> None:
        """Update a stack; where `is_skipped` is true, a boolean scalar, to what it was."""
        parameters = [parameter.detach() for parameter in stack.parameters]
        if decay is not None:
            torch._foreach_sub_(parameters, torch._foreach_mul(parameters, decay))
        updates = torch.stack([parameter.grad for parameter in stack.parameters if parameter.grad is not None])
        if self._compiled and not isinstance(lr, Tensor):  # the compiler would specialize on a Python number
            lr = updates.new_full((), lr)
        update: Callable[..., None] = self._update_vectors if len(stack.moments) == 1 else self._update_matrices
        before = [] if is_skipped is None else [moment.clone() for moment in stack.moments]
        update(updates, *stack.moments, lr, weight)
        if is_skipped is not None:
            updates.masked_fill_(is_skipped, 0.0)
            for moment, old in zip(stack.moments, before, strict=True):
                moment.copy_(torch.where(is_skipped, old, moment))
        torch._foreach_sub_(parameters, updates.unbind())


# ---- updates of one parameter -------------------------------------------------------------------------------------


def update_vector(param: Tensor, grad: Tensor, second_moment: Tensor, lr: float, lerp_weight: Number) -> None:
    """Update the running second moment, then subtract the gradient divided by its square root."""
    second_moment.lerp_(grad.square().add_(EPS), lerp_weight)
    update = second_moment.rsqrt().mul_(grad)
    param.sub_(update.mul_(_clip_lr(lr, update.square().mean())))


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
    scaled = torch.split((row_factor * _clip_lr(lr, mean_square)).unsqueeze(-1), size, dim=-2)
    for param_block, block, factor in zip(torch.split(param, size, dim=-2), blocks, scaled, strict=True):
        param_block.addcmul_(block * column_factor.unsqueeze(-2), factor, value=-1)


# ---- updates of a stack -------------------------------------------------------------------------------------------


def update_vectors(grads_SN: Tensor, second_moment_SN: Tensor, lr: Number, lerp_weight: Number) -> None:
    """Update the running second moments of S vectors, and replace their gradients by what is to be subtracted."""
    second_moment_SN.lerp_(grads_SN.square().add_(EPS), lerp_weight)
    grads_SN.mul_(second_moment_SN.rsqrt())
    mean_square_S = grads_SN.square().flatten(1).mean(dim=-1)
    grads_SN.mul_(_clip_lr(lr, mean_square_S).view(-1, *[1] * (grads_SN.dim() - 1)))


def update_matrices(grads: Tensor, row_moment: Tensor, column_moment: Tensor, lr: Number, lerp_weight: Number) -> None:
    """Update the factored second moments of S matrices, and replace their gradients by what is to be subtracted.

    Norms stand for the means of squares, so that no second tensor of the size of the gradients is allocated.

    Args:
        grads: gradients (S, ..., R, C).
        row_moment: means of rows (S, ..., R).
        column_moment: means of columns (S, ..., C).
    """
    num_rows, num_columns = grads.shape[-2:]
    norm = torch.linalg.vector_norm
    row_moment.lerp_(norm(grads, dim=-1).square_().div_(num_columns).add_(EPS), lerp_weight)
    column_moment.lerp_(norm(grads, dim=-2).square_().div_(num_rows).add_(EPS), lerp_weight)
    row_factor = (row_moment / row_moment.mean(dim=-1, keepdim=True)).rsqrt_()
    grads.mul_(column_moment.rsqrt().unsqueeze(-2))
    mean_square_S = (norm(grads, dim=-1) * row_factor).square_().flatten(1).mean(dim=-1).div_(num_columns)
    clipped = _clip_lr(lr, mean_square_S).view(-1, *[1] * (row_factor.dim() - 1))
    grads.mul_((row_factor * clipped).unsqueeze(-1))


def _decay_weight(step: Tensor) -> Tensor:
    """Return the weight of the new second moments at a step, a float32 scalar on its device."""
    wide = step.double() if ABILITIES[step.device.type].has_float64 else step.float()
    return wide.pow_(-DECAY).float()


def _clip_lr(lr: Number, mean_square: Tensor) -> Tensor:
    """Return the learning rate, reduced so that an update of this mean square is clipped to `CLIP`."""
    return (mean_square.sqrt() / CLIP).clamp_(min=1.0).reciprocal_() * lr  # torch divides a float in this way too
