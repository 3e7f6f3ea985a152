"""A convolution as a product of Fourier transforms (FFT), whatever its window's size.

With F the discrete transform over S points, a circular correlation, whose windows go on
at the beginning where they reach the end, is a product at each frequency:

    Σ_t x̃[(q + t) mod S] · k[t] = F⁻¹(F x̃ · conj(F k))[q],

the convolution theorem. Each s-th q is an output. x̃ has its p zeros before x, and so
many after it that windows which go on at the beginning read zeros there: S is L·(I − 1)
+ 1 + max(p, p') for p' zeros behind x, or at least the outputs. Taps at S and beyond
meet zeros alone, and are cut off. The channels of a group are added up before they are
transformed back, some at a time.

Applies to real floats and one to three axes, unless the highest precision is asked for:
sums are rounded with respect to the largest entry of an image, and what is not finite
reaches all of it. Costs a transform of each image of each channel, of each filter and
of each result, and a product for each pair of them at S / 2 frequencies; nothing more
for a large window. Measured on 2 cores of an AMD EPYC with AVX-512, jax 0.12.0.1,
float32, ms by sums and by transforms in blocks of groups, forward and kernel gradient:

    31x31 taps, 8 images of 28x28, 256 groups of one channel  41 and 9.8, 82 and 10
    13x13 taps, 2 images of 56x56, 64 groups of one channel   2.7 and 1.4, 3.2 and 1.4
    7x7x7 taps, 2 images of 24x24x24, 32 such groups          13 and 4.3, 25 and 4.4
    1024 taps, 2 images of 4096 points, 256 such groups       49 and 7.6, 56 and 8.5
    31x31 taps, 8 images of 256x256, one channel              57 and 1.4, 30 and 1.0
    9x9 taps, 8 images of 104x104, 5 channels, 4 features     5.6 and 1.3, 3.7 and 1.2
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms.axes import Axis, axes_of, countable
from jaxconv.algorithms.blocks import Index, block, blocks_of, cut, only, summed
from jaxconv.algorithms.padding import spread
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import every
from jaxconv.spec import ConvProblem, dilated

AXES = 3
"""Spatial axes that XLA transforms at once."""

BLOCK = 4 << 20
"""Bytes of transforms that are taken at a time, if those of a channel are not more."""

SUM = 16
"""Channels that are added up at a time: of more, XLA's loop is 3 to 5 times slower."""


def applies(problem: ConvProblem) -> bool:
    """Real floats not of the highest precision, countable sizes, and few axes."""
    precision, real = problem.precision, jnp.issubdtype(problem.dtype, jnp.floating)
    asked = precision if isinstance(precision, tuple) else (precision,)
    rounded = real and lax.Precision.HIGHEST not in asked
    return rounded and countable(problem) and len(problem.x_spatial) <= AXES


def cost(problem: ConvProblem) -> float:
    """Seconds, about: transforms, their products, and what a call costs.

    Fitted to 500 random layers of 1 to 512 channels and features, on 2 cores of an AMD
    EPYC with AVX-512, jax 0.12.0.1, float32: most take 0.7 to 1.4 times as long.
    """
    size, pairs = _points(problem), problem.channels * _transforms(problem)[0]
    transformed = (3.5e-11 * math.log2(size) + 7e-10) * points(problem)
    multiplied = 1.4e-10 * pairs * problem.spec.groups * size
    each_axis = 0.6 + 0.25 * len(problem.x_spatial)
    width = problem.sum_dtype.itemsize / 4
    return 6.3e-5 + width * each_axis * (transformed + multiplied)


def points(problem: ConvProblem) -> int:
    """Points of all transforms together."""
    results, each = _transforms(problem)
    transforms = results + each * problem.channels
    return problem.spec.groups * _points(problem) * transforms


def group_bytes(problem: ConvProblem) -> int:
    """Bytes of the transforms of one group that are taken at a time."""
    results, each = _transforms(problem)
    transforms = results + each * blocks_of(problem.channels, _at_once(problem))[1]
    return transforms * _bytes(problem)


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Multiply the transforms, channels by channels, and transform the sums back."""
    spec, axes, sums = problem.spec, axes_of(problem), problem.sum_dtype
    x_axes, (feature, in_feature, *taps), _ = spec.dimension_numbers
    x = _divided(x, spec.block_axis, spec.groups, x_axes)  # [N, G, C, *I]
    k_axes = (in_feature, feature, *taps)
    kernel = _divided(kernel, feature, spec.groups, k_axes)  # [C, G, m, *K]
    sizes = tuple(_size(axis) for axis in axes)
    count, size = blocks_of(problem.channels, _at_once(problem))

    def transformed(
        a: jax.Array, lows: Sequence[int], steps: Sequence[int]
    ) -> jax.Array:
        edges = [
            (low, S - low - dilated(n, step), step - 1)
            for low, S, n, step in zip(lows, sizes, a.shape[3:], steps, strict=True)
        ]
        padded = spread(a.astype(sums), [(0, 0, 0)] * 3 + edges)
        return lax.fft(padded, lax.FftType.RFFT, sizes)

    def product(index: Index) -> jax.Array:
        start, _, new = block(index, count, size, problem.channels)
        X = cut(x, {2: (start, size)})
        K = cut(kernel, {0: (start, size)})
        X = transformed(X, [axis.low for axis in axes], spec.lhs_dilation)
        K = transformed(K, [0 for _ in axes], spec.rhs_dilation).conj()
        K = jnp.moveaxis(only(new, K), 0, 2)
        return (X[:, :, None] * K[None]).sum(3)  # [N, G, m, *S]

    shape = (len(x), *kernel.shape[1:3], *sizes[:-1], sizes[-1] // 2 + 1)
    Y = summed(count, product, shape, np.result_type(sums, np.complex64), x)
    y = lax.fft(Y, lax.FftType.IRFFT, sizes)
    places = range(3, y.ndim)
    y = every(y, places, [0 for _ in axes], problem.output_spatial, spec.window_strides)
    y = y.reshape(len(y), problem.features, *problem.output_spatial)
    return spec.laid_out(jnp.moveaxis(y.astype(problem.output_dtype), 1, -1))


def _divided(a: jax.Array, place: int, groups: int, axes: Sequence[int]) -> jax.Array:
    """The array with its axes in this order, the groups second.

    Args:
      a: an array, one axis of which counts the groups, and within them something else.
      place: of that axis.
      groups: how many.
      axes: those of the array, in an order that the groups are to be second of.
    """
    shape = (*a.shape[:place], groups, a.shape[place] // groups, *a.shape[place + 1 :])
    first, *others = (axis + (axis >= place) for axis in axes)
    return a.reshape(shape).transpose(first, place, *others)


def _size(axis: Axis) -> int:
    """S, with no factor above 7, of which the transforms are fast."""
    outputs = axis.stride * (axis.outputs - 1) + 1
    # No window goes on at the beginning where S is all that they span.
    around = axis.spread_size + max(axis.low, axis.high)
    return _smooth(max(min(around, axis.reach), outputs))


@functools.cache
def _smooth(least: int) -> int:
    """The next number with no factor above 7, or one little further on if it is large.

    Example:
      >>> [_smooth(number) for number in (9, 11, 121)]
      [9, 12, 125]
    """
    step = 1 << max(least.bit_length() - 12, 0)
    quotients = itertools.count(-(-least // step))
    # Divisors of a power of 210 = 2·3·5·7.
    return next(step * n for n in quotients if pow(210, n.bit_length(), n) == 0)


def _points(problem: ConvProblem) -> int:
    """Points of a transform, over all axes."""
    return math.prod(_size(axis) for axis in axes_of(problem))


def _bytes(problem: ConvProblem) -> int:
    """Bytes of a transform."""
    return _points(problem) * problem.sum_dtype.itemsize


def _transforms(problem: ConvProblem) -> tuple[int, int]:
    """Results of one group, and the images and filters of one channel."""
    images = problem.batch // problem.spec.batch_group_count
    filters = problem.features // problem.spec.groups
    return images * filters, images + filters


def _at_once(problem: ConvProblem) -> int:
    """Channels that are added up at a time."""
    results, each = _transforms(problem)
    rest = BLOCK - results * _bytes(problem)
    return max(min(SUM, rest // (each * _bytes(problem))), 1)
