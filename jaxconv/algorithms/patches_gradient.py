"""A convolution of few outputs and many terms, as products of patches by blocks.

Kernel gradients are of this kind: their window is as large as the layer's output, their
outputs are the layer's taps. With q = (c, t) for a channel and a tap of the window,

    y[n, f, o] = Σ_q X[q, (o, n)] · k[f, q],  X[(c, t), (o, n)] = x̃[n, c, s·o + d·t − p]

is a matrix product. For the kernel gradient of a layer, q counts the outputs of all
images, o the taps and n the channels: X is the patches of the input, k the cotangent.
X is written block by block of q, so that it stays in the cache, and the products of the
blocks are added up. Batch groups split n and f, and are taken one after the other.

Applies to convolutions without feature groups. Costs a write and a read of X in the
cache, and a read and a write of y for each block. Measured on 2 cores of an Intel Xeon,
jax 0.12.0.1, float32, stock's ms and ours: 1x1 stride 2 at 56 73 and 10, 3x3 dilation 2
66 and 25, 3x3 stride 2 24 and 13, 3x3x3 83 and 31, 2x2x2 stride 2 10 and 1.8.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms.windows import (
    Axis,
    accumulator,
    axes_of,
    block,
    blocks_of,
    coordinates,
    countable,
    loop,
    slices,
    unravel,
    windows,
    zeros,
)
from jaxconv.spec import ConvProblem

PATCHES = 2 << 20
"""Bytes of X that are written at a time."""

FEW, LANES = 8, 8
"""Entries that are too few to be copied one window and tap at a time; of a vector.

A 7x7 layer with stride 2 of 3 channels: 57 ms so, 35 with rows of 24 entries for 7 taps
(AMD EPYC).
"""


def applies(problem: ConvProblem) -> bool:
    """No feature groups, and sizes that can be counted."""
    return problem.spec.feature_group_count == 1 and countable(problem)


class Rates(NamedTuple):
    """Seconds that a processor needs, about.

    Attributes:
      start: of a program.
      read: per window and tap, or row of them, of X.
      entry: per entry of X.
      alone: per entry of X where the product is a vector.
      move: per entry that is transposed beforehand.
      product: per addition and multiplication.
    """

    start: float
    read: float
    entry: float
    alone: float
    move: float
    product: float


RATES = {
    256: Rates(1.3e-4, 3.8e-9, 0.2e-9, 0.8e-9, 0.66e-9, 11e-12),
    512: Rates(4e-5, 9e-9, 0.36e-9, 1.8e-9, 1.4e-9, 4.5e-12),
}
"""By bits of a vector; 2 cores of an AMD EPYC and of an Intel Xeon, jax 0.12.0.1.

Fitted to 330 and to 370 dense layers in float32, of 3 to 1024 channels and features, 7
to 4096 points and 1 to 64 images.
"""


def cost(problem: ConvProblem, vector_bits: int) -> float:
    """Seconds, about: reads and entries of X, transpositions, products."""
    rates, G = RATES[vector_bits], problem.spec.batch_group_count
    terms = problem.channels * math.prod(problem.kernel_spatial)
    reads, row = terms * math.prod(problem.output_spatial), problem.batch
    if _is_sliced(problem):
        outputs = problem.output_spatial[-1]
        reads, row = reads // outputs, -(-outputs * row // LANES) * LANES
    x_axes, kernel_axes, _ = problem.spec.dimension_numbers
    moved = 0 if x_axes[0] == len(x_axes) - 1 else math.prod(problem.x_shape)
    if kernel_axes[0] != len(x_axes) - 1:
        moved += math.prod(problem.kernel_shape)
    features = problem.features // G
    copies = rates.read * reads + rates.move * moved
    copies += (rates.alone if features == 1 else rates.entry) * reads * row
    return rates.start + copies + rates.product * 2 * reads * row * features


def run(
    problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Callable
) -> jax.Array:
    """Add up the products of the blocks of q."""
    spec, axes = problem.spec, axes_of(problem)
    batch, channel, *spatial = spec.dimension_numbers.lhs_spec
    feature, in_feature, *taps = spec.dimension_numbers.rhs_spec
    G, sums = spec.batch_group_count, accumulator(problem)
    x = x.transpose(channel, *spatial, batch)  # [C, *I, N]
    x = x.reshape(*x.shape[:-1], G, -1)
    kernel = kernel.transpose(in_feature, *taps, feature)  # [C, *K, F]
    terms, kernel = kernel.shape[:-1], kernel.reshape(-1, G, kernel.shape[-1] // G)
    last, row = None, x.shape[-1]
    if _is_sliced(problem):
        last = axes.pop()
        x, row = _in_rows(x, last)
    outputs = coordinates(axes, "outputs")
    width = math.prod(axis.outputs for axis in axes) * row
    total, _, f = kernel.shape
    entries = PATCHES // problem.dtype.itemsize
    count, size = blocks_of(total, max(entries // max(width, f), 1))

    def patches(q: jax.Array, group: jax.Array) -> jax.Array:
        c, *t = (i[:, None] for i in unravel(q, terms))
        if last is None:
            X = windows(x, axes, c, outputs, t, group.reshape(1, 1))
        else:
            start = last.rhs_dilation * t.pop() * problem.batch
            X = slices(x, axes, c, outputs, t, start, row)
        return X.reshape(size, width)

    # A pair of precisions is of x and of the kernel. The smaller matrix stands first:
    # the product is up to three times as fast.
    precision, patches_first = problem.precision, width < f
    if isinstance(precision, tuple) and not patches_first:
        precision = precision[::-1]

    def add(step: jax.Array, y: jax.Array) -> jax.Array:
        group, index = unravel(step, (G, count))
        start, q, new = block(index, size, total)
        X = patches(q, group)
        k = lax.dynamic_slice(kernel, (start, group, np.int32(0)), (size, 1, f))[:, 0]
        # Both: zero times an infinity would not be zero.
        X, k = (jnp.where(new[:, None], a, jnp.zeros((), a.dtype)) for a in (X, k))
        product = lax.dot_general(
            *((X, k) if patches_first else (k, X)),
            (((0,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=sums,
        )
        product += lax.dynamic_index_in_dim(y, group, keepdims=False)
        return lax.dynamic_update_index_in_dim(y, product, group, 0)

    y = zeros((G, width, f) if patches_first else (G, f, width), sums, x)
    y = loop(G * count, add, y)
    y = y.swapaxes(1, 2) if patches_first else y
    y = y.astype(problem.output_dtype).reshape(G * f, -1, row)
    if last is not None:
        y = y[..., : last.outputs * problem.batch]
    y = y.reshape(G * f, *problem.output_spatial, -1)
    return spec.laid_out(y.swapaxes(0, -1))


def _is_sliced(problem: ConvProblem) -> bool:
    """Few entries for each window and tap, but all outputs of an axis in a row."""
    spec = problem.spec
    in_a_row = spec.window_strides[-1] == spec.lhs_dilation[-1] == 1
    return in_a_row and spec.groups == 1 and problem.batch <= FEW


def _in_rows(x: jax.Array, last: Axis) -> tuple[jax.Array, int]:
    """Lay in a row what all outputs of the last axis read for a tap.

    Args:
      x: [C, *I, 1, N].
      last: the last axis of I.

    Returns:
      [C, *I', W], where the entries for tap t begin at d·t·N, and how many they are,
      with what makes up whole vectors, so that the copy uses vector units.
    """
    n = x.shape[-1]
    length = -(-last.outputs * n // LANES) * LANES
    points = last.rhs_dilation * (last.taps - 1) + -(-length // n)
    edges = [(0, 0, 0)] * x.ndim
    edges[-3] = (last.low, points - last.size - last.low, 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    return x.reshape(*x.shape[:-3], -1), length
