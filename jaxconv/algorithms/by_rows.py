"""A convolution block of rows by block of rows.

Rows are the entries along the first spatial axis, with input dilation L, window stride
s, kernel dilation d and low padding p. Row o of y reads row i of x where

    L·i = s·o + d·t − p,

so that R rows of y further on, with s·R a multiple of L, the same is read s·R / L rows
further on: y may be taken R rows after R rows, in a loop whose body is a convolution of
a slice of x, and the rows that are left over in one more.

Applies without batch groups, to two periods of rows and more. Costs a copy of x with
its zeros along the first axis, and bounds the temporary memory of the inner
convolution: about `BLOCK` bytes of each, besides the d·(K − 1) rows of x that
neighbouring blocks both read.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms.axes import axes_of, countable
from jaxconv.algorithms.blocks import Index, blocks_of, cut, loop, put, zeros
from jaxconv.algorithms.padding import edges_at
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem

BLOCK = 2 << 20
"""Bytes of y, or of x, that are taken at a time, or of as few rows as can be."""


def applies(problem: ConvProblem) -> bool:
    """No batch groups, and at least two periods of rows."""
    if problem.spec.batch_group_count > 1 or not countable(problem):
        return False
    axis = axes_of(problem)[0]
    return axis.outputs >= 2 * axis.period


def of_block(problem: ConvProblem) -> tuple[int, ConvProblem]:
    """How many blocks there are, with that of what is left over, and one's problem."""
    outputs, rows = problem.output_spatial[0], _rows(problem)
    return -(-outputs // rows), _of_rows(problem, rows)


def _rows(problem: ConvProblem) -> int:
    """Rows of y in a block: whole periods."""
    axis = axes_of(problem)[0]
    row = max(problem.x_bytes, problem.y_bytes) // axis.outputs
    most = max(BLOCK // (row * axis.period), 1)
    return blocks_of(axis.outputs // axis.period, most)[1] * axis.period


def _of_rows(problem: ConvProblem, rows: int) -> ConvProblem:
    """The problem of so many rows of y, and of the rows of x that they read."""
    spec, axis = problem.spec, axes_of(problem)[0]
    part = axis._replace(outputs=rows, low=axis.low % axis.lhs_dilation)
    entries = max((part.reach - 1 - part.low) // axis.lhs_dilation + 1, 1)
    part = part._replace(size=entries)
    x_shape = list(problem.x_shape)
    x_shape[spec.dimension_numbers.lhs_spec[2]] = part.size
    spec = spec.replace(padding=((part.low, part.high), *spec.padding[1:]))
    return dataclasses.replace(problem, spec=spec, x_shape=tuple(x_shape))


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Convolve the blocks one after the other."""
    spec, axis, rows = problem.spec, axes_of(problem)[0], _rows(problem)
    of_x, of_y = spec.dimension_numbers.lhs_spec[2], spec.dimension_numbers.out_spec[2]
    count, rest = divmod(axis.outputs, rows)

    # Rows of x that the first and the last block begin and end with.
    begin = -(axis.low // axis.lhs_dilation)
    step = axis.stride * rows // axis.lhs_dilation
    end = (axis.reach - 1 - axis.low) // axis.lhs_dilation + 1
    missing = max(-begin, 0), max(end - axis.size, 0), 0
    edges = edges_at([of_x], [missing], x.ndim)
    x, begin = lax.pad(x, jnp.zeros((), x.dtype), edges), max(begin, 0)

    def block(start: Index, outputs: int) -> jax.Array:
        """So many rows of y from those on that read x from `start`."""
        one = _of_rows(problem, outputs)
        part = cut(x, {of_x: (start, one.x_shape[of_x])})
        return conv(one.spec, part, kernel)

    def write(index: jax.Array, y: jax.Array) -> jax.Array:
        part = block(np.int32(begin) + index * np.int32(step), rows)
        return put(y, part, {of_y: index * np.int32(rows)})

    y = zeros(problem.output_shape, problem.output_dtype, x)
    y = loop(count, write, y, routine=False)
    if rest:
        part = block(np.int32(begin + count * step), rest)
        y = put(y, part, {of_y: np.int32(count * rows)})
    return y
