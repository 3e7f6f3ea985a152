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
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms.axes import Axis, is_inside, linear
from jaxconv.algorithms.blocks import Index, masked

FEW = 32
"""Entries at each position of x below which the places read are made to depend on x.

Else XLA moves them out of the loop that convolves image by image, and writes an array
of places for each tap: 27 taps of 8 channels, one image of 64x32x65 at a time, took 88
ms and 43 MB that way, and take 20 ms and no memory when the places depend on x.
Compiling takes 1.4 times as long.
"""


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


def _of_rank(array: Index, rank: int) -> Index:
    """The array with axes of size 1 before its own, also where JAX demands them."""
    return array.reshape((1,) * (rank - array.ndim) + array.shape)
