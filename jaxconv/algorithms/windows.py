"""The windows of a convolution as an array: what each output reads for each tap.

    windows[q, t, c] = x̃[n, c, s·o + d·t − p],  q = (n, o)

x̃ has zeros around x and L − 1 zeros between its entries. `windows` copies no x with
these zeros: entry ⌊(s·o + d·t − p) / L⌋ of x is read, or the entry nearest to it where
that lies outside, and what is not an entry of x is then replaced by zero. Every read is
within bounds, so that XLA's loops over the channels have no branch and use the vector
units, which reads of a `lax.pad` keep them from: a depthwise 3x3 layer took 1.1 ms, 1.7
to 2.5 ms with a padded copy, and 5.7 ms with padding fused into the loop (8 images
of 56x56, 144 channels, float32, 2 cores of an Intel Xeon, jax 0.12.0.1; to copy the
layer's arrays takes 0.7 ms).
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms.blocks import Index, masked
from jaxconv.spec import ConvProblem, accumulation_dtype, dilated

FEW = 32
"""Entries at each position of x below which the places read are made to depend on x.

Else XLA moves them out of the loop that convolves image by image, and writes an array
of places for each tap: 27 taps of 8 channels, one image of 64x32x65 at a time, took 88
ms and 43 MB that way, and take 20 ms and no memory when the places depend on x.
Compiling takes 1.4 times as long.
"""

COPY = 4 << 20
"""Bytes that the input may take with its zeros in place, besides all arrays' twice."""

LANES = 16
"""Entries of a vector of 512 bits, in float32."""


Edge = tuple[int, int, int]
"""(low, high, between), zeros before and after an axis, and between its entries."""


class Axis(NamedTuple):
    """The geometry along one spatial axis: I, K, O, s, p, L, d."""

    size: int
    taps: int
    outputs: int
    stride: int
    low: int
    lhs_dilation: int
    rhs_dilation: int

    @property
    def reach(self) -> int:
        """How many positions all windows span together."""
        return (
            self.stride * (self.outputs - 1) + self.rhs_dilation * (self.taps - 1) + 1
        )

    @property
    def spread_size(self) -> int:
        """Positions of the input with the zeros between its entries."""
        return dilated(self.size, self.lhs_dilation)

    @property
    def most(self) -> int:
        """The largest number by which places are counted, or windows moved."""
        return max(self.reach + abs(self.low), self.spread_size, *self)

    @property
    def period(self) -> int:
        """P, the fewest outputs after which a tap meets an entry, or a zero, again."""
        return self.lhs_dilation // math.gcd(self.stride, self.lhs_dilation)

    @property
    def high(self) -> int:
        """Zeros after the dilated input up to the last window's end, or less than 0."""
        return self.reach - self.low - self.spread_size

    @property
    def edges(self) -> tuple[int, int]:
        """How many zeros lie before and after the dilated input, within a window."""
        return max(self.low, 0), max(self.high, 0)

    @property
    def is_inside(self) -> bool:
        """Whether every window reads entries of the input alone, along this axis."""
        return self.lhs_dilation == 1 and not any(self.edges)

    @property
    def extent(self) -> int:
        """Positions of the input with its zeros in place."""
        return self.spread_size + sum(self.edges)

    def read(self, output: Index, tap: Index) -> tuple[Index, Index]:
        """Where x has what the output reads for the tap, and whether it does at all."""
        first, steps = _times(self.stride, output), _times(self.rhs_dilation, tap)
        if isinstance(first, jax.Array):
            first, steps = steps, first
        position = (first - self.low) + steps  # by NumPy, the former, if it is static
        if self.is_inside:
            return position, np.True_
        entry = position if self.lhs_dilation == 1 else position // self.lhs_dilation
        # What is negative is larger than any other number, read as an unsigned one.
        there = entry.astype(np.uint32) < np.uint32(self.size)
        if self.lhs_dilation > 1:
            there &= position % self.lhs_dilation == 0
        return entry, there


def _times(factor: int, index: Index) -> Index:
    """The product, for which nothing is traced where it is the index."""
    return index if factor == 1 else factor * index


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


def is_inside(axes: Sequence[Axis]) -> bool:
    """Whether every window reads entries of the input alone."""
    return all(axis.is_inside for axis in axes)


def unravel(index: Index, sizes: Sequence[int]) -> list[Index]:
    """The coordinates of a linear index in an array of those sizes.

    Example:
      >>> [int(i) for i in unravel(np.array(7), (2, 5))]
      [1, 2]
    """
    # A linear index is not negative, of which JAX's own `//` takes care.
    divide = lax.div if isinstance(index, jax.Array) else np.floor_divide
    coordinates = []
    for size in map(np.int32, reversed(sizes[1:])):
        outer = divide(index, size)
        # Of a remainder, as of each division, XLA:CPU makes a kernel of its own.
        coordinates.append(index - outer * size)
        index = outer
    return [index, *coordinates[::-1]]


def spread(x: jax.Array, edges: Sequence[Edge]) -> jax.Array:
    """`lax.pad` with zeros, cropped after it where edges are negative.

    XLA's partitioner crashes where it is to do both at once. What is cropped
    by more than there is is empty.

    Example:
      >>> spread(jnp.ones(2), [(1, -1, 1)]).tolist()
      [0.0, 1.0, 0.0]
    """
    zeros_around = [(max(low, 0), max(high, 0), inner) for low, high, inner in edges]
    x = lax.pad(x, jnp.zeros((), x.dtype), zeros_around)
    starts = [max(-low, 0) for low, _, _ in edges]
    stops = [
        max(size - max(-high, 0), start)
        for size, start, (_, high, _) in zip(x.shape, starts, edges, strict=True)
    ]
    return lax.slice(x, starts, stops)


def edges_at(places: Sequence[int], edges: Sequence[Edge], rank: int) -> list[Edge]:
    """Edges of the axes at some places, and none of the others, as `lax.pad` has them.

    Example:
      >>> edges_at([2], [(1, 3, 0)], 3)
      [(0, 0, 0), (0, 0, 0), (1, 3, 0)]
    """
    all_edges = [(0, 0, 0)] * rank
    for place, edge in zip(places, edges, strict=True):
        all_edges[place] = edge
    return all_edges


def entries(x: jax.Array, kept: int = 1) -> jax.Array:
    """The array with all axes but the last `kept` as one: a place per entry.

    To be done before a loop that reads them. XLA:CPU moves axes that are merged
    afterwards in one pass, but copies what it moved once more where they stay apart:
    [8, 144, 56, 56] with the channels last 1.9 ms, and merged 0.6 ms (AMD EPYC).

    Example:
      >>> entries(jnp.zeros((2, 3, 4, 5)), 2).shape
      (6, 4, 5)
    """
    # Else XLA takes the merging back into the loop.
    return lax.optimization_barrier(x.reshape(-1, *x.shape[x.ndim - kept :]))


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
      x: the `entries` of [N, *I, C], or those of [N, *I, G, C/G] with two axes kept
        where `blocks` has the index of the group; [N, *I, C] itself for a slice.
      axes: the geometry.
      batch: n, or a slice of the whole batch.
      outputs: o along each axis; with the other indices, of shapes that broadcast. If
        all are of one axis, entries of a whole batch are found by one index each.
      taps: t along each axis.
      *blocks: g, or nothing.

    Returns:
      [*broadcast, C], with the whole batch first if `batch` is a slice.
    """
    if not isinstance(batch, slice):
        where = places(x, axes, batch, outputs, taps, *blocks)
        return read(x, where, is_inside(axes))
    rank = max(i.ndim for i in (*outputs, *taps))
    found, there = _reads(axes, outputs, taps, rank)
    found = [
        entry if axis.is_inside else entry.clip(0, axis.size - 1)
        for axis, entry in zip(axes, found, strict=True)
    ]
    if rank == 1:
        found = [linear(found, [axis.size for axis in axes[1:]])]
        x = x.reshape(len(x), -1, x.shape[-1])
    if len(x) * x.shape[-1] < FEW:
        x, found = lax.optimization_barrier((x, found))
    read_along = tuple(range(1, 1 + len(found)))
    X = lax.gather(
        x,
        jnp.stack(jnp.broadcast_arrays(*found), -1) if rank > 1 else found[0][:, None],
        lax.GatherDimensionNumbers((0, 1 + rank), read_along, read_along),
        (len(x), *(1 for _ in found), x.shape[-1]),
        mode="promise_in_bounds",
    )
    return masked(_of_rank(there[..., None], X.ndim), X)


def places(
    x: jax.Array,
    axes: Sequence[Axis],
    batch: Index,
    outputs: Sequence[Index],
    taps: Sequence[Index],
    *blocks: Index,
) -> jax.Array:
    """Which of the `entries` of x `windows` reads, -1 where there is none."""
    rank = max(i.ndim for i in (batch, *outputs, *taps, *blocks))
    found, there = _reads(axes, outputs, taps, rank)
    sizes = (*(axis.size for axis in axes), *x.shape[1:-1])
    indices = [_of_rank(i, rank) for i in (batch, *found, *blocks)]
    # Computed once, by one kernel, and not anew for each entry that it finds.
    return lax.optimization_barrier(masked(there, linear(indices, sizes), -1))


def read(
    x: jax.Array,
    where: jax.Array,
    inside: bool,
    starts: jax.Array | None = None,
    count: int | None = None,
) -> jax.Array:
    """What stands at the places, zero where there is no entry.

    Args:
      x: the `entries`.
      where: which of them, or less than 0.
      inside: whether none is less than 0.
      starts: where in an entry to start, None for its first.
      count: how much of an entry to read, None for all of it.

    Returns:
      [..., count].
    """
    which = [where if inside else lax.max(where, np.int32(0))]
    if starts is not None:
        which = jnp.broadcast_arrays(*which, starts)
    x = x.reshape(-1, x.shape[-1])
    X = runs(x, which, count or x.shape[-1])
    return X if inside else masked((where >= 0)[..., None], X)


def runs(x: jax.Array, starts: Sequence[jax.Array], count: int) -> jax.Array:
    """So many entries along the last axis from each start.

    Args:
      x: an array.
      starts: indices along its first axes, of the same shape; zero along the others.
      count: the length of a run.

    Returns:
      [*starts[0].shape, count].

    Example:
      >>> runs(jnp.arange(9), [jnp.array([4, 0])], 3).tolist()
      [[4, 5, 6], [0, 1, 2]]
    """
    rank, others = starts[0].ndim, x.ndim - 1
    return lax.gather(
        x,
        jnp.stack(starts, -1),
        lax.GatherDimensionNumbers(
            (rank,), tuple(range(others)), tuple(range(len(starts)))
        ),
        (*(1 for _ in range(others)), count),
        mode="promise_in_bounds",
    )


def _reads(
    axes: Sequence[Axis], outputs: Sequence[Index], taps: Sequence[Index], rank: int
) -> tuple[list[Index], Index]:
    """Which entries are read along each axis, and whether there are such."""
    reads = [
        axis.read(_of_rank(o, rank), _of_rank(t, rank))
        for axis, o, t in zip(axes, outputs, taps, strict=True)
    ]
    found = [entry for entry, _ in reads]
    valid = [v for axis, (_, v) in zip(axes, reads, strict=True) if not axis.is_inside]
    if not valid:
        return found, np.ones((1,) * rank, bool)
    return found, functools.reduce(operator.and_, valid)


def linear(indices: Sequence[Index], sizes: Sequence[int]) -> Index:
    """The linear index, of indices along each axis and sizes of all but the first.

    Example:
      >>> linear([np.array(1), np.array(2)], [5]).item()
      7
    """
    place = indices[0]
    for index, size in zip(indices[1:], sizes, strict=True):
        place = place * size + index
    return place


def _of_rank(array: Index, rank: int) -> Index:
    """The array with axes of size 1 before its own, also where JAX demands them."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)


def padded(x: jax.Array, axes: Sequence[Axis]) -> tuple[jax.Array, list[Axis]]:
    """x̃, the input with its zeros in place, and its axes, which nothing exceeds.

    Args:
      x: [N, *I, C].
      axes: the geometry.

    Returns:
      [N, *Ĩ, C], and the axes of Ĩ, with L = 1 and p ≤ 0.
    """
    edges, inner = [(0, 0, 0)], []
    for axis in axes:
        low, high = axis.edges
        edges.append((low, high, axis.lhs_dilation - 1))
        inner.append(
            axis._replace(size=axis.extent, low=axis.low - low, lhs_dilation=1)
        )
    if not any(map(any, edges)):
        return x, inner
    (low, high, between), channels = edges[-1], x.shape[-1]
    if between:
        edges.append((0, 0, 0))
    else:
        # One axis less, and it is compiled in 25 ms instead of 100.
        x = x.reshape(*x.shape[:-2], -1)
        edges[-1] = (low * channels, high * channels, 0)
    # Reads that are fused with the padding have a branch for each entry.
    x = lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), edges))
    return x.reshape(len(x), *(axis.size for axis in inner), channels), inner


def spanned(x: jax.Array, places: Sequence[int], axes: Sequence[Axis]) -> jax.Array:
    """The positions that all windows span together, of an undilated input.

    Args:
      x: an input, in any order of its axes.
      places: where its spatial axes stand.
      axes: their geometry.
    """
    edges = [(axis.low, axis.high, 0) for axis in axes]
    return spread(x, edges_at(places, edges, x.ndim))


def every(
    x: jax.Array,
    places: Sequence[int],
    starts: Sequence[int],
    counts: Sequence[int],
    steps: Sequence[int],
) -> jax.Array:
    """So many entries in steps from a start, along each axis at one of `places`.

    Example:
      >>> every(jnp.arange(9), [0], starts=[1], counts=[3], steps=[2]).tolist()
      [1, 3, 5]
    """
    start, limit, strides = [0] * x.ndim, list(x.shape), [1] * x.ndim
    for place, first, count, step in zip(places, starts, counts, steps, strict=True):
        start[place], strides[place] = first, step
        limit[place] = first + step * (count - 1) + 1
    return lax.slice(x, start, limit, strides)


def padded_bytes(problem: ConvProblem) -> int:
    """Bytes of the input with its zeros in place."""
    entries = math.prod(problem.x_shape) // math.prod(problem.x_spatial)
    entries *= math.prod(axis.extent for axis in axes_of(problem))
    return entries * problem.dtype.itemsize


def is_small_copy(problem: ConvProblem) -> bool:
    """Whether the input with its zeros in place is not much larger than all arrays."""
    return padded_bytes(problem) <= 2 * problem.bytes + COPY


def coordinates(axes: Sequence[Axis], field: str) -> list[np.ndarray]:
    """Coordinates of all taps, or outputs, in row-major order, along each axis.

    Example:
      >>> [t.tolist() for t in coordinates([Axis(9, 2, 8, 1, 0, 1, 1)] * 2, "taps")]
      [[0, 0, 1, 1], [0, 1, 0, 1]]
    """
    sizes = [getattr(axis, field) for axis in axes]
    linear = np.arange(math.prod(sizes), dtype=np.int32)
    return unravel(linear, sizes) if sizes else []


def accumulator(problem: ConvProblem) -> np.dtype:
    """Dtype of the sums."""
    return accumulation_dtype(problem.output_dtype)


def countable(problem: ConvProblem) -> bool:
    """There are spatial axes, something to sum, and int32 counts every index."""
    if not problem.is_static or problem.out_sharding is not None:
        return False
    sizes = (problem.x_shape, problem.kernel_shape, problem.output_shape)
    counted = all(0 < math.prod(shape) < 2**31 for shape in sizes)
    reached = all(axis.most < 2**31 for axis in axes_of(problem))
    return counted and reached and len(problem.x_shape) > 2


def transposed(problem: ConvProblem) -> int:
    """Entries of x and of y whose channels do not stand last."""
    moved = 0 if problem.spec.channels_last else math.prod(problem.x_shape)
    of_y = 0 if problem.spec.features_last else math.prod(problem.output_shape)
    return moved + of_y
