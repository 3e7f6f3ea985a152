"""Linear maps that stand around a layer's convolution, each with its transpose."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv import calculus


class LinearMap(NamedTuple):
    """A linear map and its transpose: ⟨apply(x), g⟩ = ⟨x, transpose(g)⟩."""

    apply: Callable[[jax.Array], jax.Array]
    transpose: Callable[[jax.Array], jax.Array]

    @property
    def transposed(self) -> "LinearMap":
        """The transpose as a map."""
        return LinearMap(self.transpose, self.apply)


IDENTITY = LinearMap(lambda x: x, lambda g: g)


def merged_batch(axis: int, batch: Sequence[int]) -> LinearMap:
    """Merge the leading axes of sizes `batch` into the one batch axis at `axis`.

    The last of them stands at `axis` already; without any, one of size 1 is put there.
    """
    if not batch:
        return LinearMap(
            lambda x: jnp.expand_dims(x, axis), lambda y: jnp.squeeze(y, axis)
        )
    here = range(axis, axis + len(batch) - 1)

    def merge(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, range(len(here)), here)
        rest = x.shape[axis + len(batch) :]
        return x.reshape(*x.shape[:axis], math.prod(batch), *rest)

    def split(y: jax.Array) -> jax.Array:
        y = y.reshape(*y.shape[:axis], *batch, *y.shape[axis + 1 :])
        return jnp.moveaxis(y, here, range(len(here)))

    return LinearMap(merge, split)


def turned_kernel(axes: Sequence[int], groups: int) -> LinearMap:
    """From a kernel to that of the input gradient, a permutation of its entries.

    Args:
      axes: the kernel's (output feature, input feature, *spatial).
      groups: G, divides the output features.
    """
    return LinearMap(
        lambda k: calculus.transposed_kernel(axes, groups, k),
        lambda g: calculus.transposed_kernel(calculus.swapped(axes), groups, g),
    )


def continued(
    merge: LinearMap, edges: Sequence[tuple[int, int]], mode: str
) -> LinearMap:
    """Merge the batch axes, and continue x by (low, high) points per axis."""

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, edges, mode=mode)

    def transpose(g: jax.Array) -> jax.Array:
        starts = [low for low, _ in edges]
        stops = [n - high for n, (_, high) in zip(g.shape, edges, strict=True)]
        # The point at which a linear map is differentiated does not matter.
        _, pull_back = jax.vjp(pad, lax.slice(g, starts, stops))
        return merge.transpose(*pull_back(g))

    return LinearMap(lambda x: pad(merge.apply(x)), transpose)


def circular(split: LinearMap, axes: Sequence[tuple[int, int, int, int]]) -> LinearMap:
    """Wrap the result around a circle, y[o] ← Σ_m y[o − a + m·period], and split it.

    Args:
      split: the map that splits the batch axes.
      axes: per spatial axis (axis, size, period, a), where a points make it begin with
        a full period.
    """

    def apply(y: jax.Array) -> jax.Array:
        for axis, size, period, before in axes:
            edges = [(0, 0)] * y.ndim
            edges[axis] = (before, -(before + size) % period)
            y = jnp.pad(y, edges)
            y = y.reshape(*y.shape[:axis], -1, period, *y.shape[axis + 1 :]).sum(
                axis, dtype=y.dtype
            )
        return split.apply(y)

    def transpose(g: jax.Array) -> jax.Array:
        g = split.transpose(g)
        for axis, size, period, before in axes:
            repeats = [1] * g.ndim
            repeats[axis] = -(-(before + size) // period)
            g = lax.slice_in_dim(jnp.tile(g, repeats), before, before + size, axis=axis)
        return g

    return LinearMap(apply, transpose)
