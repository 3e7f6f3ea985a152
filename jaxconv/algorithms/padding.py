"""The zeros that lie around the entries of an input, and between them.

x̃ has p zeros before x along an axis, L − 1 between its entries, and as many after it as
the last window needs; where there are less than none, it is cropped.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.algorithms.axes import Axis, axes_of
from jaxconv.spec import ConvProblem

COPY = 4 << 20
"""Bytes that the input may take with its zeros in place, besides all arrays' twice."""

Edge = tuple[int, int, int]
"""(low, high, between), zeros before and after an axis, and between its entries."""


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


def padded_bytes(problem: ConvProblem) -> int:
    """Bytes of the input with its zeros in place."""
    entries = math.prod(problem.x_shape) // math.prod(problem.x_spatial)
    entries *= math.prod(axis.extent for axis in axes_of(problem))
    return entries * problem.dtype.itemsize


def is_small_copy(problem: ConvProblem) -> bool:
    """Whether the input with its zeros in place is not much larger than all arrays."""
    return padded_bytes(problem) <= 2 * problem.bytes + COPY
