"""A kernel gradient slice by slice, the first axis's taps on the cotangent's side.

In the kernel gradient of a layer, as a convolution of few outputs and a large window,
o counts the layer's taps, t its outputs, c its images, n and f its channels and
features. With o = (o₁, o⃗), t = (t₁, t⃗), steps of one for t₁, and the slice of x that
is read, i₁ = s₁·o₁ + t₁ − p₁, in the place of t₁,

    y[n, f, o₁, o⃗] = Σ_{c, i₁, t⃗} X[c, i₁, t⃗; (o⃗, n)] · K[c, i₁, t⃗; (o₁, f)],
    X[c, i₁, t⃗; (o⃗, n)] = x̃[n, c, i₁, s⃗·o⃗ + d⃗·t⃗ − p⃗],
    K[c, i₁, t⃗; (o₁, f)] = k[f, c, (i₁ + p₁ − s₁·o₁, t⃗)]:

one product for each few slices. X is an O₁-th of the patches of `patches_gradient`, and
K for each o₁ the same slices of k, moved by s₁·o₁. Both are read from copies of x and k
with their zeros, as runs of all images, or features: of slices that are put one beside
the other XLA writes each by itself first, by a program of its own.

Applies to ungrouped convolutions of two or more spatial axes of an undilated input, the
window's first axis undilated. Costs the copies, and a write and a read of X and K in
the cache. 3x3x3 at 32, 16 channels and features, takes 6.7 ms by `patches_gradient` and
4.5 so, 32 of them 21 and 18, 8 2.8 and 1.7, one channel to 16 1.3 and 1.1 (2 cores of
an AMD EPYC with vectors of 256 bits, jax 0.12.0.1, float32).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms import patches_gradient
from jaxconv.algorithms.axes import (
    Axis,
    axes_of,
    coordinates,
    countable,
    linear,
    unravel,
)
from jaxconv.algorithms.blocks import block, blocks_of, only, summed
from jaxconv.algorithms.padding import padded, padded_bytes, spread
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import runs
from jaxconv.processor import LANES, Processor
from jaxconv.spec import ConvProblem

BLOCK = 4 << 20
"""Bytes of X and K that are kept at a time."""

OUTPUTS = 32
"""The most outputs of a slice, and slices of outputs, that the cost was fitted to."""


def applies(problem: ConvProblem) -> bool:
    """No groups, two axes or more, undilated as said, and slices that fit the cache."""
    spec = problem.spec
    if spec.groups > 1 or len(problem.x_shape) < 4 or not countable(problem):
        return False
    undilated = not spec.is_input_dilated and spec.rhs_dilation[0] == 1
    along, *others = problem.output_spatial
    few = max(along, math.prod(others)) <= OUTPUTS
    axis, rows = axes_of(problem)[0], math.prod(problem.kernel_spatial[1:])
    rows *= problem.channels * (axis.size + axis.stride * (axis.outputs - 1))
    counted = max(padded_bytes(problem), rows) < 2**31  # with zeros in place
    return undilated and few and counted and _slice_bytes(problem) <= BLOCK


def cost(problem: ConvProblem, processor: Processor) -> float:
    """Seconds, about: copies, products, sums, what is transposed beforehand.

    Fitted to 280 random layers of 1 to 256 channels and features, 5 to 45 points along
    each of three axes and 1 to 16 images, on 2 cores of an AMD EPYC with AVX-512, jax
    0.12.0.1, float32: the choice takes 1.08 times as long as the best, 2.5 at most, and
    1.30 without this algorithm among them, 12 at most. On other processors products
    are taken to be as fast as those of `patches_gradient`.
    """
    rows = problem.channels * problem.x_spatial[0]
    rows *= math.prod(problem.kernel_spatial[1:])
    X, K = _columns(problem)
    small, large = sorted((X, K))
    runs = math.prod(problem.output_spatial[1:])
    each = 1.8e-10 * X + 4e-10 * runs + 2.5e-10 * K
    term = max(6.7e-12, 2 * patches_gradient.RATES[processor].product)
    each += term * small * -(-large // LANES) * LANES
    blocks = problem.channels * _blocks(problem)[0]
    seconds = 3e-5 + rows * each + 6.7e-10 * patches_gradient.moved(problem)
    return seconds + blocks * (1e-6 + 2.7e-10 * X * K)


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Add up the products of the blocks of slices."""
    spec, (axis, *others) = problem.spec, axes_of(problem)
    batch, channel, depth, *spatial = spec.dimension_numbers.lhs_spec
    feature, in_feature, k_depth, *taps = spec.dimension_numbers.rhs_spec
    x = x.transpose(channel, depth, *spatial, batch)  # [c, I₁, *I, n]
    kernel = kernel.transpose(in_feature, k_depth, *taps, feature)  # [c, T₁, *T, f]
    slices = Axis(axis.size, axis.size, 1, 1, 0, 1, 1)
    x, (_, *others) = padded(x, [slices, *others])
    # Slice i₁ of x meets slice i₁ + s₁·(O₁ − 1 − o₁) of k for o₁, with these zeros.
    moved = axis.stride * (axis.outputs - 1)
    ends = (moved - axis.low, axis.size + axis.low - axis.taps, 0)
    kernel = kernel.reshape(*kernel.shape[:2], -1)
    kernel = spread(kernel, [(0, 0, 0), ends, (0, 0, 0)])
    (count, size), sums, f = _blocks(problem), problem.sum_dtype, problem.features
    shape = _columns(problem)
    patches_first = shape[0] < shape[1]  # the smaller matrix
    precision = problem.precision if patches_first else problem.exchanged_precision
    x, kernel = x.reshape(-1, x.shape[-1]), kernel.reshape(-1, f)
    window = math.prod(a.taps for a in others)
    rows = np.arange(size * window, dtype=np.int32)
    # Entry s⃗·o⃗ + d⃗·t⃗ − p⃗ of slice i₁ stands as far from the first as i₁, t⃗ and o⃗ say.
    sizes = [a.size for a in others]
    i, *points = unravel(rows, (size, *(a.taps for a in others)))
    read = [a.rhs_dilation * t - a.low for a, t in zip(others, points, strict=True)]
    origin = lax.optimization_barrier(linear([i, *read], sizes))
    outputs = zip(others, coordinates(others, "outputs"), strict=True)
    along = linear([a.stride * o for a, o in outputs], sizes[1:])
    behind = (moved - axis.stride * np.arange(axis.outputs, dtype=np.int32)) * window

    def term(index: jax.Array) -> jax.Array:
        c, i = unravel(index, (problem.channels, count))
        start, _, new = block(i, count, size, axis.size)
        begin = origin + math.prod(sizes) * (c * axis.size + start)
        X = runs(x, [begin[:, None] + along[None]], x.shape[-1])
        begin = rows + window * (c * (axis.size + moved) + start)
        K = runs(kernel, [begin[:, None] + behind[None]], f)
        # XLA merges the axes in the same loop, which then copies entry by entry.
        X, K = (a.reshape(len(rows), -1) for a in lax.optimization_barrier((X, K)))
        if new is not None:
            new = jnp.repeat(new, window)
        # Both: zero times an infinity would not be zero.
        X, K = only(new, X), only(new, K)
        first, second = (X, K) if patches_first else (K, X)
        return lax.dot_general(
            first,
            second,
            (((0,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=sums,
        )

    y = summed(problem.channels * count, term, sorted(shape), sums, x)
    y = y if patches_first else y.T
    y = y.astype(problem.output_dtype).reshape(
        *problem.output_spatial[1:], problem.batch, axis.outputs, -1
    )
    y = jnp.moveaxis(y, (-3, -2), (0, 1))  # [n, *O, f]
    return spec.laid_out(y)


def _columns(problem: ConvProblem) -> tuple[int, int]:
    """How many X has, and K."""
    along, *others = problem.output_spatial
    return math.prod(others) * problem.batch, along * problem.features


def _slice_bytes(problem: ConvProblem) -> int:
    """Bytes of a slice of X and of K."""
    rows = math.prod(problem.kernel_spatial[1:])
    return rows * sum(_columns(problem)) * problem.dtype.itemsize


def _blocks(problem: ConvProblem) -> tuple[int, int]:
    """(number, size) of the blocks of slices of a channel."""
    return blocks_of(problem.x_spatial[0], max(BLOCK // _slice_bytes(problem), 1))
