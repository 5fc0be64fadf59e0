"""Triton kernels of Adafactor: a stack of parameters of equal shape in one launch, found by their addresses.

A table on the device has the addresses of each parameter and its gradient, in turns. A parameter is a vector, or B
matrices (R, C); M is the number of matrices of a stack. A program has a vector, or a tile of rows (r,) and columns (c,)
of a matrix. Sums are in a fixed order, without atomic additions. Imported only where Triton is installed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from raylm.training.optim.stacks import CLIP, EPS

EPSILON, MAX_RMS = tl.constexpr(EPS), tl.constexpr(CLIP)


@triton.jit
def write_addresses(table, addresses):  # type: ignore[no-untyped-def]
    """Store addresses, which are arguments: a CUDA graph keeps them."""
    for number in tl.static_range(len(addresses)):
        tl.store(table + number, addresses[number])


@triton.jit  # type: ignore[untyped-decorator]
def _find(table, number, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return a pointer to the float32 tensor of a number in the table of addresses."""
    address = tl.load(table + number).to(tl.pointer_type(tl.float32), bitcast=True)
    if ALIGNED:
        address = tl.multiple_of(address, 16)
    return address


@triton.jit  # type: ignore[untyped-decorator]
def sum_vector_squares(table, totals, length, ALIGNED: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum the squares of one vector per program."""
    index = tl.program_id(0)
    gradients = _find(table, 2 * index + 1, ALIGNED)
    squares = tl.zeros((SIZE,), tl.float32)
    for start in range(0, length, SIZE):
        numbers = start + tl.arange(0, SIZE)
        gradient = tl.load(gradients + numbers, mask=numbers < length, other=0.0)
        squares += gradient * gradient
    tl.store(totals + index, tl.sum(squares, 0))


@triton.jit  # type: ignore[untyped-decorator]
def update_vectors(  # type: ignore[no-untyped-def]
    table,
    moments,
    clip_factor,
    lerp_weight,
    lr,
    weight_decay,
    found_inf,
    length,
    ALIGNED: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Update the moments of one vector per program, then the vector."""
    if tl.load(found_inf) != 0:
        return
    index = tl.program_id(0)
    parameters = _find(table, 2 * index, ALIGNED)
    gradients = _find(table, 2 * index + 1, ALIGNED)
    moments += index.to(tl.int64) * length
    factor, weight, rate = tl.load(clip_factor), tl.load(lerp_weight), tl.load(lr)
    squares = tl.zeros((SIZE,), tl.float32)
    for start in range(0, length, SIZE):
        numbers = start + tl.arange(0, SIZE)
        gradient = factor * tl.load(gradients + numbers, mask=numbers < length, other=0.0)
        moment = tl.load(moments + numbers, mask=numbers < length, other=1.0)
        moment += weight * (gradient * gradient + EPSILON - moment)
        tl.store(moments + numbers, moment, mask=numbers < length)
        update = tl.where(numbers < length, gradient * tl.rsqrt(moment), 0.0)
        squares += update * update
    scale = rate / tl.maximum(tl.sqrt(tl.sum(squares, 0) / length) / MAX_RMS, 1.0)
    for start in range(0, length, SIZE):
        numbers = start + tl.arange(0, SIZE)
        gradient = factor * tl.load(gradients + numbers, mask=numbers < length, other=0.0)
        moment = tl.load(moments + numbers, mask=numbers < length, other=1.0)
        parameter = tl.load(parameters + numbers, mask=numbers < length)
        parameter -= parameter * (weight_decay * rate)
        tl.store(parameters + numbers, parameter - gradient * tl.rsqrt(moment) * scale, mask=numbers < length)


@triton.jit  # type: ignore[untyped-decorator]
def _find_tile(rows, columns, TILE_R: tl.constexpr, TILE_C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the rows (r,) and columns (c,) of the program's tile, its offsets (r, c) in the matrix, and its mask."""
    column_tiles = tl.cdiv(columns, TILE_C)
    row = tl.program_id(0) // column_tiles * TILE_R + tl.arange(0, TILE_R)
    column = tl.program_id(0) % column_tiles * TILE_C + tl.arange(0, TILE_C)
    offsets = row.to(tl.int64)[:, None] * columns + column[None, :]
    return row, column, offsets, (row < rows)[:, None] & (column < columns)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _find_matrix(table, rows, columns, per_parameter, IS_GRADIENT: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return a pointer to the program's matrix, of a parameter or a gradient."""
    matrix = tl.program_id(1)
    start = _find(table, 2 * (matrix // per_parameter) + IS_GRADIENT, ALIGNED)
    offset = (matrix % per_parameter).to(tl.int64) * rows * columns
    if ALIGNED:
        offset = tl.multiple_of(offset, 4)
    return start + offset


@triton.jit
def _load_factors(row_factors, column_factors, row, column, rows, columns):  # type: ignore[no-untyped-def]
    """Return the factors of the update of a tile's rows (r, 1) and columns (1, c)."""
    matrix = tl.program_id(1).to(tl.int64)
    row_factor = tl.load(row_factors + matrix * rows + row, mask=row < rows, other=0.0)
    column_factor = tl.load(column_factors + matrix * columns + column, mask=column < columns, other=0.0)
    return row_factor[:, None], column_factor[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def sum_squares(  # type: ignore[no-untyped-def]
    table,
    row_sums,
    column_sums,
    rows,
    columns,
    per_parameter,
    ALIGNED: tl.constexpr,
    TILE_R: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """Sum the squares of a tile's rows, to (M, tiles of columns, R), and columns, to (M, tiles of rows, C)."""
    row, column, offsets, mask = _find_tile(rows, columns, TILE_R, TILE_C)
    gradients = _find_matrix(table, rows, columns, per_parameter, 1, ALIGNED)
    gradient = tl.load(gradients + offsets, mask=mask, other=0.0)
    squares = gradient * gradient
    column_tiles = tl.cdiv(columns, TILE_C)
    matrix = tl.program_id(1).to(tl.int64)
    row_sums += (matrix * column_tiles + tl.program_id(0) % column_tiles) * rows + row
    column_sums += (matrix * tl.cdiv(rows, TILE_R) + tl.program_id(0) // column_tiles) * columns + column
    tl.store(row_sums, tl.sum(squares, 1), mask=row < rows)
    tl.store(column_sums, tl.sum(squares, 0), mask=column < columns)


@triton.jit  # type: ignore[untyped-decorator]
def update_moments(  # type: ignore[no-untyped-def]
    row_sums,
    column_sums,
    row_moments,
    column_moments,
    clip_factor,
    lerp_weight,
    found_inf,
    rows,
    columns,
    SIZE: tl.constexpr,
):
    """Update the moments of one matrix per program; replace its sums by the factors of its update, with clipping's."""
    if tl.load(found_inf) != 0:
        return
    matrix = tl.program_id(0).to(tl.int64)
    row_sums, row_moments = row_sums + matrix * rows, row_moments + matrix * rows
    column_sums, column_moments = column_sums + matrix * columns, column_moments + matrix * columns
    factor, weight = tl.load(clip_factor), tl.load(lerp_weight)
    total = tl.zeros((SIZE,), tl.float32)
    for start in range(0, rows, SIZE):
        numbers = start + tl.arange(0, SIZE)
        mean = tl.load(row_sums + numbers, mask=numbers < rows, other=0.0) * (factor * factor) / columns
        moment = tl.load(row_moments + numbers, mask=numbers < rows, other=0.0)
        moment += weight * (mean + EPSILON - moment)
        tl.store(row_moments + numbers, moment, mask=numbers < rows)
        total += tl.where(numbers < rows, moment, 0.0)
    mean_of_rows = tl.sum(total, 0) / rows
    for start in range(0, rows, SIZE):
        numbers = start + tl.arange(0, SIZE)
        moment = tl.load(row_moments + numbers, mask=numbers < rows, other=1.0)
        tl.store(row_sums + numbers, factor * tl.rsqrt(moment / mean_of_rows), mask=numbers < rows)
    for start in range(0, columns, SIZE):
        numbers = start + tl.arange(0, SIZE)
        mean = tl.load(column_sums + numbers, mask=numbers < columns, other=0.0) * (factor * factor) / rows
        moment = tl.load(column_moments + numbers, mask=numbers < columns, other=1.0)
        moment += weight * (mean + EPSILON - moment)
        tl.store(column_moments + numbers, moment, mask=numbers < columns)
        tl.store(column_sums + numbers, tl.rsqrt(moment), mask=numbers < columns)


@triton.jit  # type: ignore[untyped-decorator]
def square_updates(  # type: ignore[no-untyped-def]
    table,
    row_factors,
    column_factors,
    squares,
    rows,
    columns,
    per_parameter,
    ALIGNED: tl.constexpr,
    TILE_R: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """Sum the squares of the update of one tile per program, to (M, tiles)."""
    row, column, offsets, mask = _find_tile(rows, columns, TILE_R, TILE_C)
    gradients = _find_matrix(table, rows, columns, per_parameter, 1, ALIGNED)
    row_factor, column_factor = _load_factors(row_factors, column_factors, row, column, rows, columns)
    update = tl.load(gradients + offsets, mask=mask, other=0.0) * column_factor * row_factor
    total = tl.sum(tl.sum(update * update, 1), 0)
    tl.store(squares + tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0), total)


@triton.jit  # type: ignore[untyped-decorator]
def update_matrices(  # type: ignore[no-untyped-def]
    table,
    row_factors,
    column_factors,
    mean_squares,
    lr,
    weight_decay,
    found_inf,
    rows,
    columns,
    per_parameter,
    ALIGNED: tl.constexpr,
    TILE_R: tl.constexpr,
    TILE_C: tl.constexpr,
):
    """Update one tile of a parameter per program."""
    if tl.load(found_inf) != 0:
        return
    row, column, offsets, mask = _find_tile(rows, columns, TILE_R, TILE_C)
    parameters = _find_matrix(table, rows, columns, per_parameter, 0, ALIGNED)
    gradients = _find_matrix(table, rows, columns, per_parameter, 1, ALIGNED)
    row_factor, column_factor = _load_factors(row_factors, column_factors, row, column, rows, columns)
    rate, mean_square = tl.load(lr), tl.load(mean_squares + tl.program_id(1) // per_parameter)
    scale = rate / tl.maximum(tl.sqrt(mean_square) / MAX_RMS, 1.0)
    update = tl.load(gradients + offsets, mask=mask, other=0.0) * column_factor * (row_factor * scale)
    parameter = tl.load(parameters + offsets, mask=mask, other=0.0)
    tl.store(parameters + offsets, parameter - parameter * (weight_decay * rate) - update, mask=mask)
