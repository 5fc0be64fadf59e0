"""Clipping and Adafactor by Triton kernels: three passes over the gradients, one over the parameters.

The norm of all gradients is the root of the sums of squares of which the second moments are made. What clips the
gradients scales these sums and the update: the gradients are not written. Imported only where Triton is installed.

S is the number of parameters of a stack; a parameter is a vector (N), or B matrices (R, C). M is S * B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from raylm.training.optim import adafactor_kernels as kernels
from raylm.training.optim.stacks import StackUpdate

TILE_ROWS, TILE_COLUMNS = 64, 128
"""Part of a matrix that a program holds; powers of two."""
VECTOR_BLOCK, MOMENT_BLOCK = 1024, 4096
"""Numbers of a vector, and of a matrix's rows or columns, that a program holds at a time: at least one per thread, for
threads that share one would overwrite it while others read it."""
NUM_WARPS = 8
ADDRESSES_PER_LAUNCH = 64
"""Addresses that are passed to a kernel as its arguments, which may be 4 KB."""
ALIGNMENT = 16
"""Bytes that a thread reads at once if tensors begin at multiples of them."""
CLIP_EPS = 1e-6
"""Added to the norm of the gradients, as by `torch.nn.utils.clip_grad_norm_`."""


def update_stacks(stacks: Sequence[StackUpdate], max_grad_norm: float, found_inf: Tensor | None = None) -> None:
    """Update parameters and second moments in place, as if all gradients had been clipped.

    Args:
        stacks: all parameters; tensors contiguous and float32.
        max_grad_norm: largest norm of the gradients of all of them; 0: they are not clipped.
        found_inf: float32 scalar; nothing is changed unless it is 0. None: 0.
    """
    found_inf = stacks[0].lerp_weight.new_zeros(()) if found_inf is None else found_inf
    launches = list(_prepare(stacks))
    sums = [launch.sum_squares() for launch in launches]
    clip_factor = _clip_factor([of_stack[0] for of_stack in sums], max_grad_norm)
    for launch, of_stack in zip(launches, sums, strict=True):
        launch.update(of_stack, clip_factor, found_inf)


def _clip_factor(squares: Sequence[Tensor], max_grad_norm: float) -> Tensor:
    """Return the factor (scalar) of all gradients, by the parts of the sum of their squares."""
    total = torch.cat([part.flatten() for part in squares]).sum()
    if max_grad_norm == 0:
        return torch.ones_like(total)
    return total.sqrt_().add_(CLIP_EPS).reciprocal_().mul_(max_grad_norm).clamp_(max=1.0)


def _prepare(stacks: Sequence[StackUpdate]) -> Iterator[_Launches]:
    """Yield the launches of each stack, with a table of the addresses of its tensors on the device.

    The addresses get there as arguments of a kernel, which a CUDA graph keeps.
    """
    pairs = [pair for stack in stacks for pair in zip(stack.parameters, stack.gradients, strict=True)]
    addresses = [tensor.data_ptr() for pair in pairs for tensor in pair]
    padded = addresses + addresses[-1:] * (-len(addresses) % ADDRESSES_PER_LAUNCH)
    table = torch.empty(len(padded), dtype=torch.int64, device=stacks[0].lerp_weight.device)
    write: Any = kernels.write_addresses
    for start in range(0, len(padded), ADDRESSES_PER_LAUNCH):
        part = slice(start, start + ADDRESSES_PER_LAUNCH)
        write[(1,)](table[part], tuple(padded[part]))
    start = 0
    for stack in stacks:
        part = slice(start, start + 2 * len(stack.parameters))
        is_aligned = not any(address % ALIGNMENT for address in addresses[part])
        launches = _MatrixLaunches if len(stack.moments) == 2 else _VectorLaunches
        yield launches(stack, table[part], is_aligned)
        start = part.stop


class _Launches:
    """Launches for a stack, the addresses of whose tensors are on the device."""

    def __init__(self, stack: StackUpdate, table: Tensor, is_aligned: bool) -> None:
        self._stack, self._table, self._is_aligned = stack, table, is_aligned
        self._lr = stack.lr if isinstance(stack.lr, Tensor) else stack.lerp_weight.new_full((), stack.lr)
        self._shape = stack.parameters[0].shape
        self._size = len(stack.parameters)

    def sum_squares(self) -> Sequence[Tensor]:
        """Return sums of the squares of all gradients; the first tensor has each square once."""
        raise NotImplementedError

    def update(self, sums: Sequence[Tensor], clip_factor: Tensor, found_inf: Tensor) -> None:
        """Update moments and parameters.

        Args:
            sums: from `sum_squares`, overwritten.
            clip_factor: factor of all gradients.
            found_inf: scalar; nothing is changed unless it is 0.
        """
        raise NotImplementedError

    def _new(self, *shape: int) -> Tensor:
        return self._table.new_empty(shape, dtype=torch.float32)


class _VectorLaunches(_Launches):
    """Launches of a program for each vector, or single number."""

    def sum_squares(self) -> Sequence[Tensor]:
        """Return the sum of squares of each gradient (S,)."""
        totals_S = self._new(self._size)
        self._launch(kernels.sum_vector_squares, totals_S)
        return (totals_S,)

    def update(self, sums: Sequence[Tensor], clip_factor: Tensor, found_inf: Tensor) -> None:
        """Update moments and vectors."""
        stack = self._stack
        numbers = clip_factor, stack.lerp_weight, self._lr, stack.weight_decay, found_inf
        self._launch(kernels.update_vectors, stack.moments[0], *numbers)

    def _launch(self, kernel: Any, *arguments: Any) -> None:
        options = {"ALIGNED": self._is_aligned, "SIZE": VECTOR_BLOCK, "num_warps": NUM_WARPS}
        kernel[(self._size,)](self._table, *arguments, self._shape.numel(), **options)


class _MatrixLaunches(_Launches):
    """Launches of a program for each tile of a matrix."""

    def __init__(self, stack: StackUpdate, table: Tensor, is_aligned: bool) -> None:
        super().__init__(stack, table, is_aligned)
        self._rows, self._columns = self._shape[-2:]
        self._per_parameter = self._shape[:-2].numel()
        self._matrices = self._size * self._per_parameter
        self._row_tiles = triton.cdiv(self._rows, TILE_ROWS)
        self._column_tiles = triton.cdiv(self._columns, TILE_COLUMNS)

    def sum_squares(self) -> Sequence[Tensor]:
        """Return the sums of squares of the gradients' rows (M, R) and columns (M, C)."""
        rows = self._new(self._matrices, self._column_tiles, self._rows)
        columns = self._new(self._matrices, self._row_tiles, self._columns)
        self._launch(kernels.sum_squares, rows, columns)
        return rows.sum(dim=1), columns.sum(dim=1)

    def update(self, sums: Sequence[Tensor], clip_factor: Tensor, found_inf: Tensor) -> None:
        """Update moments and matrices."""
        stack, (rows, columns) = self._stack, sums
        numbers = clip_factor, stack.lerp_weight, found_inf, self._rows, self._columns
        update_moments: Any = kernels.update_moments
        options = {"SIZE": MOMENT_BLOCK, "num_warps": NUM_WARPS}
        update_moments[(self._matrices,)](rows, columns, *stack.moments, *numbers, **options)
        squares = self._new(self._size, self._per_parameter * self._row_tiles * self._column_tiles)
        self._launch(kernels.square_updates, rows, columns, squares)
        mean_square_S = squares.sum(dim=1).div_(self._shape.numel())
        self._launch(kernels.update_matrices, rows, columns, mean_square_S, self._lr, stack.weight_decay, found_inf)

    def _launch(self, kernel: Any, *arguments: Any) -> None:
        is_aligned = self._is_aligned and 4 * self._columns % ALIGNMENT == 0
        tile = {"ALIGNED": is_aligned, "TILE_R": TILE_ROWS, "TILE_C": TILE_COLUMNS, "num_warps": NUM_WARPS}
        grid = self._row_tiles * self._column_tiles, self._matrices
        kernel[grid](self._table, *arguments, self._rows, self._columns, self._per_parameter, **tile)
