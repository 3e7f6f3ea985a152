"""A depthwise convolution as a sum over taps: entry by entry, with no matrix product.

With one channel c per group and m features for each,

    y[n, o, (c, m)] = Σ_t x̃[n, s·o + d·t − p, c] · k[t, (c, m)],

one loop over the entries of y, whose body adds up the taps and runs along the features;
for m > 1 they read a copy of x with each channel m times. Groups of several channels
add up over those, too. Where there are many terms they are taken block by block, so
that the code does not grow with their number.

Applies to feature groups. Costs one read of x and one write of y, K multiplications
each, and one more read and write of y for each further block of terms. Measured on 2
cores of an Intel Xeon, jax 0.12.0.1, float32, stock's ms and ours: 3x3 at 56 55 and
1.1, with stride 2 15 and 0.5, 7x7 112 and 6.5, 1-D of 4 taps 245 and 8.4, which is the
time of a copy.
"""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms.windows import (
    Index,
    accumulator,
    axes_of,
    block,
    blocks_of,
    countable,
    loop,
    unravel,
    windows,
    zeros,
)
from jaxconv.spec import ConvProblem

TERMS, BLOCK = 64, 8
"""Terms up to which one loop adds up all; terms that it adds up at a time otherwise.

31x31 takes 13 ms with blocks of 7 to 64 terms, but 0.2 and 0.7 s to compile; 5x5x5 4.1
and 6.5 ms, 0.2 and 1.8 s (AMD EPYC).
"""


def applies(problem: ConvProblem) -> bool:
    """Feature groups, no batch groups, and sizes that can be counted."""
    spec = problem.spec
    grouped = spec.feature_group_count > 1 and spec.batch_group_count == 1
    return grouped and countable(problem)


def run(
    problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Callable
) -> jax.Array:
    """Add up the terms, block by block."""
    spec, axes = problem.spec, axes_of(problem)
    batch, channel, *spatial = spec.dimension_numbers.lhs_spec
    feature, in_feature, *taps = spec.dimension_numbers.rhs_spec
    G, sums = spec.feature_group_count, accumulator(problem)
    m = problem.features // G
    x = x.transpose(batch, *spatial, channel)
    x = jnp.moveaxis(x.reshape(*x.shape[:-1], G, -1), -1, 0)  # [c, N, *I, G]
    x = jnp.repeat(x, m, -1) if m > 1 else x  # [c, N, *I, (G, m)]
    # What is read for several channels or features would be computed for each of them.
    x = lax.optimization_barrier(x) if len(x) > 1 or m > 1 else x
    kernel = kernel.transpose(in_feature, *taps, feature)
    terms = kernel.shape[:-1]
    kernel = kernel.reshape(-1, problem.features).astype(sums)  # [(c, t), F]
    outputs = np.ix_(*(np.arange(axis.outputs, dtype=np.int32) for axis in axes))
    total = len(kernel)
    count, size = (1, total) if total <= TERMS else blocks_of(total, BLOCK)

    def term(k: jax.Array, c: Index, *t: Index) -> jax.Array:
        X = windows(x[c], axes, slice(None), outputs, t).astype(sums)  # [N, *O, F]
        return X * k.reshape(*(1 for _ in X.shape[:-1]), -1)

    def add(index: jax.Array, y: jax.Array) -> jax.Array:
        _, q, new = block(index, count, size, total)
        for i in range(size):
            product = term(kernel[q[i]], *unravel(q[i], terms))
            y = y + (product if new is None else jnp.where(new[i], product, 0))
        return y

    if count == 1:
        every = (term(kernel[i], *unravel(np.int32(i), terms)) for i in range(size))
        y = functools.reduce(operator.add, every)
    else:
        shape = (problem.batch, *problem.output_spatial, problem.features)
        y = loop(count, add, zeros(shape, sums, x), routine=False)
    return spec.laid_out(y.astype(problem.output_dtype))
