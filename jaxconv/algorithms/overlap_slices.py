"""The taps of the first spatial axis as features, added up where slices overlap.

With o = (o₁, o⃗), t = (t₁, t⃗), and steps of one along the first axis,

    Z[n, i₁; (t₁, f), o⃗] = Σ_{c, t⃗} x̃[n, c, i₁, s⃗·o⃗ + d⃗·t⃗ − p⃗] · k[f, c, (t₁, t⃗)]
    y[n, f, o₁, o⃗] = Σ_{t₁} Z[n, o₁ + d₁·t₁ − p₁; (t₁, f), o⃗]:

for all slices i₁ of all images one convolution with an axis less and K₁ times the
features, of x as it lies. `fold_depth` has K₁ times the channels, and copies x for
them. Z is added up block by block of images, or of slices: those at the end of a block,
which the next slices of y read as well, are handed on.

Applies to ungrouped convolutions of two or more spatial axes, the first undilated, with
steps of one and no negative padding. Costs a write and a read of Z in the cache.
Measured on 2 cores of an AMD EPYC with AVX-512, jax 0.12.0.1, float32, 3x3x3 taps, in
ms by `fold_depth`, by `overlap_add` where all of it fits, and so:

    1 image of 32, 32 to 32     7.2          5.9
    1 image of 16, 64 to 32     1.8   1.5    1.3
    1 image of 8, 64 to 64      0.7   0.46   0.40
    8 images of 16, 32 to 32    8.1          5.7
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms import direct
from jaxconv.algorithms.axes import Axis, axes_of, countable
from jaxconv.algorithms.blocks import block, blocks_of, cut, loop, put, zeros
from jaxconv.algorithms.fold_depth import of_slices
from jaxconv.algorithms.order import transposed
from jaxconv.algorithms.padding import spread
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem

BLOCK = 5 << 19
"""Bytes of Z that are kept at a time, and once more with zeros around it.

With 1 MB 6.3 ms, with 2.5 5.8 and 7 MB in all, with 4 5.6 and 10. With less than twice
as many slices as a slice gives to, moving them takes longer than `fold_depth` does: 64
slices of 64x64, 16 to 16 channels, 20 and 16 ms.
"""


def applies(problem: ConvProblem) -> bool:
    """No groups, two axes or more, few enough of Z at a time, sums kept as y is."""
    spec = problem.spec
    if spec.groups > 1 or len(problem.x_shape) < 4 or not countable(problem):
        return False
    axis = axes_of(problem)[0]
    steps = axis.stride == axis.lhs_dilation == 1 and min(spec.padding[0]) >= 0
    reaches = _far(axis) - axis.low < axis.size  # from the first slices to some of y
    kept = problem.sum_dtype == problem.output_dtype
    fits = 2 * (1 + _far(axis)) * _slice_bytes(problem) <= BLOCK
    return steps and reaches and kept and fits


def cost(problem: ConvProblem) -> float:
    """Seconds, about, of three spatial axes: a convolution, Z added up, x moved."""
    flat = _flat(problem)
    added = 2e-10 * math.prod(flat.output_shape) + 2.5e-10 * transposed(problem)
    return direct.dense_cost(flat) + added


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Convolve slices with all taps as features, and add up what they give to y."""
    spec, axis = problem.spec, axes_of(problem)[0]
    batch, channel, depth, *spatial = spec.dimension_numbers.lhs_spec
    feature, in_feature, k_depth, *taps = spec.dimension_numbers.rhs_spec
    x = x.transpose(batch, depth, *spatial, channel)
    kernel = kernel.transpose(*taps, in_feature, k_depth, feature)
    kernel = kernel.reshape(*kernel.shape[:-2], -1)  # [*K, C, K₁·F]
    flat, far = _flat(problem).spec, _far(axis)
    of_slice = (*problem.output_spatial[1:], axis.taps, problem.features)
    images, at_once = blocks_of(problem.batch, max(BLOCK // _image_bytes(problem), 1))
    first, passes, size = _passes(problem)
    low, high = spec.padding[0]

    def given(n: Any, start: Any, count: int) -> jax.Array:
        """What so many slices give to y, Z as [n, slices, (*O, K₁, F)]."""
        slices = cut(x, {0: (n, at_once), 1: (start, count)})
        Z = conv(flat, slices.reshape(-1, *x.shape[2:]), kernel)
        Z = Z.reshape(at_once, count, math.prod(of_slice))
        return lax.optimization_barrier(Z)

    def added_up(Z: jax.Array) -> jax.Array:
        """The slices of y that read these of Z, and no others."""
        Z, count = lax.optimization_barrier(Z), Z.shape[1] - far
        Z = Z.reshape(*Z.shape[:2], *of_slice)
        ahead = [axis.rhs_dilation * t for t in range(axis.taps)]
        terms = [Z[:, a : a + count, ..., t, :] for t, a in enumerate(ahead)]
        return functools.reduce(lax.add, terms)

    def around(Z: jax.Array, low: int, high: int) -> jax.Array:
        """Z with so many slices of zeros before and behind."""
        return spread(Z, [(0, 0, 0), (low, high, 0), (0, 0, 0)])

    def convolved(index: jax.Array, y: jax.Array) -> jax.Array:
        n, *_ = block(index, images, at_once, problem.batch)
        Z = around(given(n, np.int32(0), first), low, 0 if passes else high)
        y = put(y, added_up(Z), {0: n})
        if not passes:
            return y

        def add(step: jax.Array, carry: tuple) -> tuple:
            y, before = carry
            start = first + step * size
            Z = given(n, start, size)
            both = jnp.concatenate([before, Z[:, :far]], 1)
            y = put(y, added_up(both), {0: n, 1: start + low - far})
            y = put(y, added_up(Z), {0: n, 1: start + low})
            return y, Z[:, size - far :]

        y, before = loop(passes, add, (y, Z[:, first + low - far :]))
        rest = added_up(around(before, 0, high))
        return put(y, rest, {0: n, 1: np.int32(axis.outputs - high)})

    shape = (problem.batch, *problem.output_spatial, problem.features)
    y = zeros(shape, problem.output_dtype, x)
    return spec.laid_out(loop(images, convolved, y))


def _far(axis: Axis) -> int:
    """How many slices lie between the first and the last that a slice gives to."""
    return axis.rhs_dilation * (axis.taps - 1)


def _flat(problem: ConvProblem) -> ConvProblem:
    """All slices of all images, with the taps of the first axis among the features."""
    depth, *spatial = problem.x_spatial
    k_depth, *taps = problem.kernel_spatial
    return dataclasses.replace(
        problem,
        spec=of_slices(problem.spec),
        x_shape=(problem.batch * depth, *spatial, problem.channels),
        kernel_shape=(*taps, problem.channels, k_depth * problem.features),
    )


def _passes(problem: ConvProblem) -> tuple[int, int, int]:
    """Slices that are taken first, passes over the others, and slices of each pass."""
    axis = axes_of(problem)[0]
    if _image_bytes(problem) <= BLOCK:
        return axis.size, 0, 0
    size = BLOCK // _slice_bytes(problem)
    passes, first = divmod(axis.size, size)
    if first < max(_far(axis) - axis.low, 1):  # none of y is done with these
        passes, first = passes - 1, first + size
    return first, passes, size


def _image_bytes(problem: ConvProblem) -> int:
    """Bytes of Z for an image."""
    return axes_of(problem)[0].size * _slice_bytes(problem)


def _slice_bytes(problem: ConvProblem) -> int:
    """Bytes of a slice of Z."""
    flat = _flat(problem)
    return math.prod(flat.output_shape[1:]) * problem.sum_dtype.itemsize
