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

import math
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms.axes import (
    Axis,
    axes_of,
    coordinates,
    countable,
    is_inside,
    unravel,
)
from jaxconv.algorithms.blocks import (
    NEW_PAGES,
    Index,
    added_up,
    at,
    block,
    blocks_of,
    cut,
    loop,
    only,
    zeros,
)
from jaxconv.algorithms.order import transposed
from jaxconv.algorithms.padding import padded, padded_bytes
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import entries, every, windows
from jaxconv.processor import LANES
from jaxconv.spec import ConvProblem

TERMS, AT_ONCE = 64, 8
"""Terms up to which one loop adds up all; terms that it adds up at a time otherwise.

31x31 takes 13 ms with blocks of 7 to 64 terms, but 0.2 and 0.7 s to compile; 5x5x5 4.1
and 6.5 ms, 0.2 and 1.8 s (AMD EPYC).
"""

MANY, SMALL, COPY = 16, 5 << 20, 7 << 20
"""Terms from which on a small x is copied with its zeros in place; bytes of such a
copy, and of any other.

They are slices then, which XLA compiles faster than reads that mask what is outside:
7x7 at 12 with 384 channels in 95 ms instead of 270, and both take 0.7 ms; 5x5 at 24
with 240 in 60 instead of 130, and 0.76 ms instead of 0.65; but 3x3 at 14 in 50 instead
of 80, and 0.29 ms instead of 0.20 (AMD EPYC).
"""

ENTRIES = 10
"""Entries that are copied in the time that it takes to mask one for all channels.

Of strided layers the stride times as many are not read. Over 219 random layers of 8 to
64 channels, of fewer terms or larger, the choice takes 1.05 times as long as the faster
way, 1.13 with the bound on the copy; masks alone 1.4 times, 10 at most (Intel Xeon).
"""

PLACES = 1 << 18
"""Places of what all terms read up to which each is written down by itself.

A loop over the positions of an image then reads one index for each term, not one along
each axis: 3x3 is compiled in 0.8 times the time, and takes as long. Of more places,
lists along each axis take less memory.
"""


def applies(problem: ConvProblem) -> bool:
    """Feature groups, no batch groups, and sizes that can be counted."""
    spec = problem.spec
    grouped = spec.feature_group_count > 1 and spec.batch_group_count == 1
    return grouped and countable(problem)


def cost(problem: ConvProblem) -> float:
    """Seconds, about, of an undilated input: terms, masks of zeros, copies, new pages.

    Fitted to 190 random layers of 4 to 144 groups, of 1 to 8 channels and 1 to 64
    features each and 1 to 3 axes, on 2 cores of an AMD EPYC with AVX-512, jax 0.12.0.1,
    float32. For the 111 of them that are no plain depthwise layers the choice by costs
    takes 1.3 times as long as the best; without this one among them it took 2.7 times.
    """
    F, G, N = problem.features, problem.spec.groups, problem.batch
    terms = problem.channels * problem.taps
    outputs = N * problem.outputs
    copied, vectors = 0, -(-F // LANES) * LANES
    if max(problem.channels, F // G) > 1:
        copied = N * math.prod(problem.x_spatial) * problem.channels * F
    seconds = outputs * terms * vectors * (2.2e-11 if terms <= TERMS else 4.7e-11)
    if not is_padded(problem):
        seconds += 7e-10 * outputs * terms
    image = max(copied, outputs * F) // N * problem.dtype.itemsize
    if image > NEW_PAGES:
        seconds += 0.5e-9 * image * N
    return 2.8e-5 + seconds + 7e-11 * copied + 2.5e-10 * transposed(problem)


def is_padded(problem: ConvProblem) -> bool:
    """Whether the zeros are laid out first: many terms, or masks would take longer."""
    terms, axes = problem.channels * problem.taps, axes_of(problem)
    if terms > TERMS or any(axis.lhs_dilation > 1 for axis in axes):
        return False
    if is_inside(axes):
        return True  # there are none to be laid out
    copied = padded_bytes(problem)
    if terms >= MANY and copied <= SMALL:
        return True
    steps = math.prod(problem.spec.window_strides)
    masks = problem.batch * problem.outputs * terms
    cheaper = steps * copied // problem.dtype.itemsize < ENTRIES * masks
    return cheaper and copied <= COPY


def _sliced(x: jax.Array, axes: Sequence[Axis], taps: Sequence[Index]) -> jax.Array:
    """What all outputs read for the taps, of x with its zeros in place."""
    starts = [a.rhs_dilation * int(t) - a.low for a, t in zip(axes, taps, strict=True)]
    counts, steps = [a.outputs for a in axes], [a.stride for a in axes]
    return every(x, range(1, x.ndim - 1), starts, counts, steps)


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Add up the terms, block by block, or all at once by channels of each group."""
    spec = problem.spec
    feature, in_feature, *taps = spec.dimension_numbers.rhs_spec
    x = spec.images(x)
    x = x.reshape(*x.shape[:-1], spec.feature_group_count, problem.channels)
    kernel = kernel.transpose(in_feature, *taps, feature)
    kernel = kernel.astype(problem.sum_dtype)
    several = problem.channels * problem.taps > TERMS
    y = (_in_blocks if several else _unrolled)(problem, x, kernel)
    return spec.laid_out(y)


def _in_blocks(problem: ConvProblem, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Y [N, *O, F], of x [N, *I, G, C] and the kernel [C, *K, F]: some terms at a time.

    Terms are pairs (c, t), in the order of the kernel.
    """
    axes, terms = axes_of(problem), kernel.shape[:-1]
    kernel = kernel.reshape(-1, problem.features)
    count, size = blocks_of(len(kernel), AT_ONCE)
    stacked = jnp.stack(_copies(problem, x, range(problem.channels)))
    outputs = _lines(problem.output_spatial)

    def add(index: jax.Array, y: jax.Array) -> jax.Array:
        _, q, new = block(index, count, size, len(kernel))
        for i in range(size):
            c, *t = unravel(q[i], terms)
            X = windows(at(stacked, c), axes, slice(None), outputs, t)
            product = _times(X, cut(kernel, {0: (q[i], 1)}))
            y = y + only(None if new is None else new[i], product)
        return y

    shape = (problem.batch, *problem.output_spatial, problem.features)
    y = loop(count, add, zeros(shape, kernel.dtype, x), routine=False)
    return y.astype(problem.output_dtype)


def _unrolled(problem: ConvProblem, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Y [N, *O, F], of x [N, *I, G, C] and the kernel [C, *K, F]: one sum of all terms.

    But for channels whose copies, for each of a group's features, are large together:
    those are added up after each other.
    """
    axes, C, positions = axes_of(problem), problem.channels, problem.output_spatial
    taps, zeros_first = problem.taps, is_padded(problem)
    weights = kernel.reshape(-1, problem.features)
    if zeros_first or C * taps * math.prod(positions) > PLACES:
        outputs = _lines(positions)
    else:
        outputs = coordinates(axes, "outputs")

    def of_channel(c: int, part: jax.Array) -> Iterator[jax.Array]:
        own = padded(part, axes) if zeros_first else None
        for place, t in enumerate(np.ndindex(*problem.kernel_spatial), c * taps):
            if own is None:
                X = windows(part, axes, slice(None), outputs, [np.int32(i) for i in t])
            else:
                X = _sliced(*own, t)
            yield _times(X, lax.slice_in_dim(weights, place, place + 1))

    m = problem.features // problem.spec.feature_group_count
    copied = math.prod(x.shape[:-1]) * m * problem.dtype.itemsize
    at_once, y = max(SMALL // copied, 1), None
    for first in range(0, C, at_once):
        channels = range(first, min(first + at_once, C))
        products = [
            product
            for c, part in zip(channels, _copies(problem, x, channels), strict=True)
            for product in of_channel(c, part)
        ]
        y = added_up(products if y is None else [y, *products])
        if channels[-1] + 1 < C:  # copies of the next channels wait for this
            x, y = lax.optimization_barrier((x, y))
    assert y is not None
    # Else what uses y adds it up once more, and what was read for each tap is kept for
    # that: the step of a temporal network takes 112 ms and 156 MB, and 140 and 291.
    y = y.astype(problem.output_dtype)
    if zeros_first:
        # Slices have the order of y: with merged axes 49 of them compile in 205 instead
        # of 128 ms.
        return lax.optimization_barrier(y)
    return entries(y).reshape(len(y), *positions, -1)


def _copies(
    problem: ConvProblem, x: jax.Array, channels: Iterable[int]
) -> list[jax.Array]:
    """Channel c of each group, for each of the group's features: [N, *I, F]."""
    m = problem.features // problem.spec.feature_group_count
    parts = [jnp.repeat(x[..., c], m, -1) for c in channels]
    # What is read for several channels or features would be computed for each.
    several = problem.channels > 1 or m > 1
    return lax.optimization_barrier(parts) if several else parts


def _times(X: jax.Array, k: jax.Array) -> jax.Array:
    """What was read, times the weights [1, F] of a term.

    By lax, as there are many: NumPy's way is traced in four times the time.
    """
    k = lax.broadcast_in_dim(k, X.shape, (X.ndim - 2, X.ndim - 1))
    return lax.mul(lax.convert_element_type(X, k.dtype), k)


def _lines(sizes: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Positions along each axis, that all axes' broadcast to."""
    return np.ix_(*(np.arange(size, dtype=np.int32) for size in sizes))
