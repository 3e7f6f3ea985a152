"""A grouped convolution as one convolution per group.

With c = (g, c') and f = (g, f'),

    y[n, (g, f'), o] = Σ_{c', t} x̃[n, (g, c'), s·o + d·t − p] · k[(g, f'), c', t]

is for each g an ungrouped convolution. They are computed one after the other, by the
same code, on x with the groups outermost.

Applies to feature groups. Costs a transposition of x and of y. XLA:CPU takes a channel
of a grouped convolution at a time.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.algorithms.windows import block, blocks_of, countable, loop, zeros
from jaxconv.spec import ConvProblem

BLOCK = 4 << 20
"""Bytes that are transposed at a time; not more than twice this for one image."""


def applies(problem: ConvProblem) -> bool:
    """There are feature groups, countable sizes, and an image is not too large."""
    grouped = problem.spec.feature_group_count > 1 and countable(problem)
    return grouped and _image(problem) <= 2 * BLOCK


def cost(problem: ConvProblem) -> float:
    """Seconds, about: x and y transposed at 2.5 GB/s, convolutions at 200 GFLOP/s.

    Runs of fewer than 4 channels are transposed so much more slowly, windows of fewer
    than 8 are read at 8 ns a tap, and the features of a group fill vectors of 16.
    Fitted as the cost of `patches` is.
    """
    G = problem.spec.feature_group_count
    moved = math.prod(problem.x_shape) / min(1.0, problem.channels / 4)
    moved += math.prod(problem.output_shape) / min(1.0, problem.features / G / 4)
    reads = problem.batch * math.prod(problem.output_spatial) * G
    reads *= math.prod(problem.kernel_spatial)
    flops = 2 * reads * problem.channels * (-(-problem.features // G // 16) * 16)
    slow = 8e-9 * reads if problem.channels < 8 else 0.0
    return 3e-5 * G + 4 * moved / 2.5e9 + slow + flops / 200e9


def run(
    problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Callable
) -> jax.Array:
    """Convolve group by group."""
    spec, G = problem.spec, problem.spec.feature_group_count
    batch, channel, *spatial = spec.dimension_numbers.lhs_spec
    feature, in_feature, *taps = spec.dimension_numbers.rhs_spec
    x = x.transpose(batch, *spatial, channel)
    kernel = _groups_first(kernel.transpose(*taps, in_feature, feature), G)
    rank = len(spatial)
    inner = (0, rank + 1, *range(1, rank + 1))
    single = spec.replace(
        feature_group_count=1,
        dimension_numbers=lax.ConvDimensionNumbers(
            inner, (rank + 1, rank, *range(rank)), inner
        ),
    )
    count, size = blocks_of(len(x), max(BLOCK // _image(problem), 1))

    def write(index: jax.Array, y: jax.Array) -> jax.Array:
        start, *_ = block(index, size, len(x))
        images = _groups_first(lax.dynamic_slice_in_dim(x, start, size), G)
        part = lax.map(lambda group: conv(single, *group), (images, kernel))
        part = jnp.moveaxis(part, 0, -2)  # [n, *O, G, F/G]
        part = part.reshape(*part.shape[:-2], -1)
        return lax.dynamic_update_slice_in_dim(y, part, start, 0)

    shape = (len(x), *problem.output_spatial, problem.features)
    y = zeros(shape, problem.output_dtype, x)
    y = loop(count, write, y)
    return spec.laid_out(y)


def _groups_first(array: jax.Array, groups: int) -> jax.Array:
    """[..., (G, c)] to [G, ..., c]."""
    return jnp.moveaxis(array.reshape(*array.shape[:-1], groups, -1), -2, 0)


def _image(problem: ConvProblem) -> int:
    """Bytes of one image of x and of y, which are transposed together."""
    entries = math.prod(problem.x_shape) + math.prod(problem.output_shape)
    return entries * problem.dtype.itemsize // problem.batch
