"""The windows of a convolution as an array: what each output reads for each tap.

    windows[q, t, c] = x̃[n, c, s·o + d·t − p],  q = (n, o)

x̃ has zeros around x and L − 1 zeros between its entries. No copy of x with these zeros
is made: entry ⌊(s·o + d·t − p) / L⌋ of x is read, or the entry nearest to it where that
lies outside, and what is not an entry of x is then replaced by zero. Every read is
within bounds, so that XLA's loops over the channels have no branch and use the vector
units, which reads of a `lax.pad` keep them from: a depthwise 3x3 layer took 1.1 ms so,
1.7 to 2.5 ms with a padded copy and 5.7 ms with padding fused into the loop (8 images
of 56x56, 144 channels, float32, 2 cores of an Intel Xeon, jax 0.12.0.1; to copy the
layer's arrays takes 0.7 ms).
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.spec import ConvProblem

Index = Any
"""An int array, of NumPy where it is static and of JAX where it is computed."""


class Axis(NamedTuple):
    """The geometry along one spatial axis: I, K, O, s, p, L, d."""

    size: int
    taps: int
    outputs: int
    stride: int
    low: int
    lhs_dilation: int
    rhs_dilation: int

    def read(self, output: Index, tap: Index) -> tuple[Index, Index]:
        """Which entry of x the output reads for the tap, and whether there is one."""
        position = self.stride * output + self.rhs_dilation * tap - self.low
        if self.lhs_dilation == 1:
            entry, there = position, True
        else:
            entry = position // self.lhs_dilation
            there = position % self.lhs_dilation == 0
        there &= (entry >= 0) & (entry < self.size)
        return entry.clip(0, self.size - 1), there


def axes_of(problem: ConvProblem) -> list[Axis]:
    """The geometry of each spatial axis."""
    spec = problem.spec
    return [
        Axis(*axis)
        for axis in zip(
            problem.x_spatial,
            problem.kernel_spatial,
            problem.output_spatial,
            spec.window_strides,
            (low for low, _ in spec.padding),
            spec.lhs_dilation,
            spec.rhs_dilation,
            strict=True,
        )
    ]


def unravel(index: Index, sizes: Sequence[int]) -> list[Index]:
    """The coordinates of a linear index in an array of those sizes.

    Example:
      >>> [int(i) for i in unravel(np.array(7), (2, 5))]
      [1, 2]
    """
    coordinates = []
    for size in reversed(sizes[1:]):
        # A linear index is not negative, of which JAX's own `//` and `%` take care.
        divide, rest = (
            (lax.div, lax.rem)
            if isinstance(index, jax.Array)
            else (np.floor_divide, np.remainder)
        )
        coordinates.append(rest(index, np.int32(size)))
        index = divide(index, np.int32(size))
    return [index, *coordinates[::-1]]


def windows(
    x: jax.Array,
    axes: Sequence[Axis],
    batch: Index,
    outputs: Sequence[Index],
    taps: Sequence[Index],
    *blocks: Index,
) -> jax.Array:
    """What the outputs read for the taps, zero where there is no entry.

    Args:
      x: [N, *I, C], or [N, *I, G, C/G] where `blocks` has the index of the group.
      axes: the geometry.
      batch: n, or a slice of the whole batch.
      outputs: o along each axis; with the other indices, of shapes that broadcast.
      taps: t along each axis.
      *blocks: g, or nothing.

    Returns:
      [*broadcast, C], with the whole batch first if `batch` is a slice.
    """
    rank = max(i.ndim for i in (*outputs, *taps, *blocks))
    entries, there = _reads(axes, outputs, taps, rank)
    if isinstance(batch, slice):
        found = x.at[(batch, *entries)].get(mode="promise_in_bounds")
    else:
        linear = _linear((batch, *entries, *blocks), x.shape, rank)
        found = x.reshape(-1, x.shape[-1]).at[linear].get(mode="promise_in_bounds")
    return jnp.where(_of_rank(there, found.ndim), found, jnp.zeros((), x.dtype))


def slices(
    x: jax.Array,
    axes: Sequence[Axis],
    batch: Index,
    outputs: Sequence[Index],
    taps: Sequence[Index],
    start: Index,
    length: int,
) -> jax.Array:
    """Windows along all axes but the last, where `length` entries stand in a row.

    Args:
      x: [N, *I, W].
      axes: the geometry, without the last axis.
      batch: n.
      outputs: o along each axis of `axes`.
      taps: t along each axis of `axes`.
      start: where the entries begin in W; all of them are there.
      length: how many entries.

    Returns:
      [*broadcast, length].
    """
    rank = max(i.ndim for i in (batch, start, *outputs, *taps))
    entries, there = _reads(axes, outputs, taps, rank)
    found = lax.gather(
        x.reshape(-1),
        _linear((batch, *entries, start), x.shape, rank)[..., None],
        lax.GatherDimensionNumbers((rank,), (), (0,)),
        (length,),
        mode="promise_in_bounds",
    )
    return jnp.where(_of_rank(there, found.ndim), found, jnp.zeros((), x.dtype))


def _reads(
    axes: Sequence[Axis], outputs: Sequence[Index], taps: Sequence[Index], rank: int
) -> tuple[list[Index], Index]:
    """Which entries are read along each axis, and whether there are such, [..., 1]."""
    reads = [
        axis.read(_of_rank(o, rank), _of_rank(t, rank))
        for axis, o, t in zip(axes, outputs, taps, strict=True)
    ]
    entries = [entry for entry, _ in reads]
    there = functools.reduce(
        operator.and_, (valid for _, valid in reads), np.ones((1,) * rank, bool)
    )
    return entries, there[..., None]


def _linear(indices: Sequence[Index], sizes: Sequence[int], rank: int) -> jax.Array:
    """The linear index, computed once and not anew for each entry that it finds."""
    linear = _of_rank(indices[0], rank)
    for index, size in zip(indices[1:], sizes[1:], strict=False):
        linear = linear * size + index
    return lax.optimization_barrier(linear)


def _of_rank(array: Index, rank: int) -> Index:
    """The array with axes of size 1 before its own, also where JAX demands them."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def coordinates(axes: Sequence[Axis], field: str) -> list[np.ndarray]:
    """Coordinates of all taps, or outputs, in row-major order, along each axis.

    Example:
      >>> [t.tolist() for t in coordinates([Axis(9, 2, 8, 1, 0, 1, 1)] * 2, "taps")]
      [[0, 0, 1, 1], [0, 1, 0, 1]]
    """
    sizes = [getattr(axis, field) for axis in axes]
    linear = np.arange(math.prod(sizes), dtype=np.int32)
    return unravel(linear, sizes) if sizes else []


def zeros(shape: Sequence[int], dtype: Any, x: jax.Array) -> jax.Array:
    """Zeros to start a loop over x from: inside of shard_map they vary as x does."""
    start = jnp.zeros(shape, dtype)
    varying = jax.typeof(x).mat.varying
    return lax.pcast(start, tuple(varying), to="varying") if varying else start


def accumulator(problem: ConvProblem) -> np.dtype:
    """Dtype of the sums: short floats are added up in float32, as XLA does."""
    dtype = problem.output_dtype
    short = jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
    return np.dtype(np.float32) if short else dtype


def countable(problem: ConvProblem) -> bool:
    """There are spatial axes, something to sum, and int32 counts every index."""
    sizes = (problem.x_shape, problem.kernel_shape, problem.output_shape)
    return (
        len(problem.x_shape) > 2
        and problem.is_static
        and problem.out_sharding is None
        and all(0 < math.prod(shape) < 2**31 for shape in sizes)
    )


def blocks_of(total: int, size: int) -> tuple[int, int]:
    """(number, size) of the blocks that cover `total`, of about equal sizes.

    Example:
      >>> blocks_of(10, 4)
      (3, 4)
    """
    count = -(-total // max(min(size, total), 1))
    return count, -(-total // count)


def loop(number: int, body: Callable, start: jax.Array) -> jax.Array:
    """`start` updated by ``body(i, ·)`` for each i, of int32 with 64-bit types too."""
    return lax.fori_loop(0, number, lambda i, a: body(i.astype(np.int32), a), start)


def block(
    index: jax.Array, size: int, total: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where block `index` starts, its linear indices, and which of them are new.

    The last block is moved back to end at `total`, so that no block is cut short.
    """
    start = jnp.minimum(index * size, total - size)
    linear = start + lax.iota(np.int32, size)
    return start, linear, linear >= index * size
