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

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms.windows import (
    accumulator,
    axes_of,
    block,
    blocks_of,
    coordinates,
    countable,
    loop,
    unravel,
    windows,
    zeros,
)
from jaxconv.spec import ConvProblem

PATCHES = 2 << 20
"""Bytes of X that are written at a time."""


def applies(problem: ConvProblem) -> bool:
    """No feature groups, and sizes that can be counted."""
    return problem.spec.feature_group_count == 1 and countable(problem)


def cost(problem: ConvProblem) -> float:
    """Seconds, about: 9 ns per window and tap, 0.36 per entry of X, 220 GFLOP/s.

    Fitted to 330 dense layers, of 3 to 512 channels and features, 7 to 112 points and 1
    to 64 images, on the machine that the docstring of this module names. A product of
    one row costs 1.5 ns per entry more; what has its channels first is transposed, at
    2.9 GB/s.
    """
    terms = problem.channels * math.prod(problem.kernel_spatial)
    reads = terms * math.prod(problem.output_spatial)
    entries = reads * problem.batch
    per_entry = (
        1.8e-9 if problem.features == problem.spec.batch_group_count else 0.36e-9
    )
    x_axes, kernel_axes, _ = problem.spec.dimension_numbers
    moved = 0 if x_axes[0] == len(x_axes) - 1 else math.prod(problem.x_shape)
    if kernel_axes[0] != len(x_axes) - 1:
        moved += math.prod(problem.kernel_shape)
    products = 2 * entries * problem.features / problem.spec.batch_group_count
    copies = 9e-9 * reads + per_entry * entries + 4 * moved / 2.9e9
    return 4e-5 + copies + products / 220e9


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
    outputs = coordinates(axes, "outputs")
    (total, _, f), n = kernel.shape, x.shape[-1]
    row = max(outputs[0].size * n, f) * problem.dtype.itemsize
    count, size = blocks_of(total, max(PATCHES // row, 1))

    # A pair of precisions is of x and of the kernel.
    precision = problem.precision
    precision = precision[::-1] if isinstance(precision, tuple) else precision

    def add(step: jax.Array, y: jax.Array) -> jax.Array:
        group, index = unravel(step, (G, count))
        start, q, new = block(index, size, total)
        c, *t = (i[:, None] for i in unravel(q, terms))
        X = windows(x, axes, c, outputs, t, group.reshape(1, 1)).reshape(size, -1)
        k = lax.dynamic_slice(kernel, (start, group, np.int32(0)), (size, 1, f))[:, 0]
        # Both: zero times an infinity would not be zero.
        X, k = (jnp.where(new[:, None], a, jnp.zeros((), a.dtype)) for a in (X, k))
        # The smaller matrix first: the product is up to twice as fast.
        product = lax.dot_general(
            k,
            X,
            (((0,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=sums,
        )
        product += lax.dynamic_index_in_dim(y, group, keepdims=False)
        return lax.dynamic_update_index_in_dim(y, product, group, 0)

    y = zeros((G, f, outputs[0].size * n), sums, x)
    y = loop(G * count, add, y)
    y = y.astype(problem.output_dtype).reshape(G * f, *problem.output_spatial, n)
    return spec.laid_out(y.swapaxes(0, -1))
