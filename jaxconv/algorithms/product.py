"""A convolution that is a matrix product as it stands.

Along an axis where the window has one tap, stride 1 and no padding, output o reads
entry o alone; along one where the window covers all of x and there is one output, tap t
reads entry t alone. With every axis of one of the two kinds, i and j for those of the
first and of the second,

    y[n, f, i] = Σ_{c, j} x[n, c, i, j] · k[f, c, j]

is a product of the two arrays, contracted over c and j. Pointwise layers, their
gradients, and layers whose window is the whole image are of this kind.

Where the channels stand first, the axes of that product are torn apart by those of the
images, but the product of each image has them in place: y[n] = k · x[n], and for kernel
gradients y = Σ_c x[c] · k[c], where c counts the images of the layer.

Kernel gradients have few outputs and many terms, whose sum in a row is wrong by more
the longer it is: where all that is summed lies in a row it is cut into blocks, and the
products of the blocks are added up.

Applies without groups, dilated inputs or padding. Costs a transposition of y where the
layout asks for one, or a copy of the kernel, or of y, for each image or block. Kernel
gradients of 1x1 layers took XLA:CPU 2 to 6 times as long: 1024 to 256 channels on 8
images of 14x14 10 ms by XLA and 4 by products, 32 to 16 on 16 of 112x112 26 and 4.4 ms
(2 cores of an Intel Xeon, jax 0.12.0.1, float32).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms.axes import Axis, axes_of, countable
from jaxconv.algorithms.blocks import blocks_of
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem

COPIES = 1 << 20
"""Entries of so many copies of y, one for each image, are always worth their memory."""

LARGER, MOVED = 4, 1 << 16
"""How much larger the first factor must be to be exchanged with the second.

Or half as much again, where y has no more entries than the latter to be moved: 6272
terms, 48 times 32 results 0.29 ms with the larger factor first and 0.23 otherwise, 64
times 16 0.58 and 0.22, 1024 times 512 as long either way (Intel Xeon).
"""

CHAINS = ((8, 512), (32, 8192))
"""Channels or features, and how many terms a block adds up with fewer of them.

XLA:CPU's products of so few have no blocks of their own: sums of 11449 terms for one
feature were 40 times as wrong as stock's. From 32 on they were no worse than those.
"""

MORE = 16
"""How many times as many blocks as necessary there may be, to be of one size."""


def _is_kept(axis: Axis) -> bool:
    """One tap that reads the entry of its output."""
    alone = axis.taps == axis.stride == axis.lhs_dilation == 1 and axis.low == 0
    return alone and axis.outputs == axis.size


def _is_summed(axis: Axis) -> bool:
    """One output whose taps read all entries in turn."""
    alone = axis.outputs == axis.lhs_dilation == axis.rhs_dilation == 1
    return alone and axis.low == 0 and axis.taps == axis.size


def _kept(problem: ConvProblem) -> list[bool]:
    """Which axes are kept, in order. One of a single entry is summed if all may be."""
    axes = axes_of(problem)
    summed = all(map(_is_summed, axes))
    return [not summed and _is_kept(axis) for axis in axes]


def applies(problem: ConvProblem) -> bool:
    """No groups, and every axis is kept or summed."""
    return (
        problem.spec.groups == 1
        and countable(problem)
        and all(_is_kept(axis) or _is_summed(axis) for axis in axes_of(problem))
    )


def is_pointwise(problem: ConvProblem) -> bool:
    """Whether it applies, and each output reads one entry."""
    return applies(problem) and all(map(_is_kept, axes_of(problem)))


def is_apart(problem: ConvProblem) -> bool:
    """Whether each image has a product of its own, for which nothing is transposed."""
    axes, spec = axes_of(problem), problem.spec
    x_axes, kernel_axes, y_axes = spec.dimension_numbers
    rows, points = problem.channels, math.prod(problem.x_spatial)
    images, other, outermost = problem.batch, y_axes, (0, 1)
    if all(map(_is_summed, axes)):
        images, rows, other, outermost = rows, images, kernel_axes, (1, 0)
    elif not all(map(_is_kept, axes)):
        return False
    in_place = x_axes[2:] == other[2:] == tuple(range(2, len(x_axes)))
    copies, arrays = rows * problem.features, points * (rows + problem.features)
    # Copies of y are cheap, those of the kernel are not: 256 to 512 channels at 14x14
    # 1.4 ms so and 1.0 otherwise.
    if other is y_axes:
        few = 4 * copies <= arrays
    else:
        few = images * copies <= max(images * arrays, COPIES)
    return x_axes[:2] == other[:2] == outermost and in_place and few


def _is_exchanged(problem: ConvProblem) -> bool:
    """Whether the smaller factor comes first although it stands last in y.

    Both are summed over what stands outermost, as in kernel gradients: 1568 terms, 256
    times 4 results 0.17 ms with the larger factor first, 0.05 otherwise. It costs a
    transposition of y, which 1024 times 512 results are not worth.
    """
    y_axes = problem.spec.dimension_numbers.out_spec
    sizes = {y_axes[0]: problem.batch, y_axes[1]: problem.features}
    first, last = (sizes[axis] for axis in sorted(sizes))
    cheap = first * last <= MOVED and 3 * last <= 2 * first
    return _sums_outermost(problem) and (cheap or LARGER * last <= first)


def _sums_outermost(problem: ConvProblem) -> bool:
    """Whether what is summed stands outermost in both factors, in the same order."""
    x_axes, kernel_axes, _ = problem.spec.dimension_numbers
    outermost = x_axes[0] == kernel_axes[0] == len(x_axes) - 1
    in_order = np.array_equal(np.argsort(x_axes[1:]), np.argsort(kernel_axes[1:]))
    return outermost and in_order and all(map(_is_summed, axes_of(problem)))


def blocks(problem: ConvProblem) -> tuple[int, int]:
    """How many products are added up, and how many terms each of them has.

    One, of all terms, where these do not lie in a row or cannot be divided evenly.
    """
    terms = problem.channels * problem.taps
    columns = min(problem.batch, problem.features)
    size = next((size for fewer, size in CHAINS if columns < fewer), terms)
    if size >= terms or not _sums_outermost(problem):
        return 1, terms
    number, size = blocks_of(terms, size, MORE)
    return (number, size) if number * size == terms else (1, terms)


def _features_first(problem: ConvProblem) -> bool:
    """Whether k is the first factor: where features stand before the batch in y."""
    y_axes = problem.spec.dimension_numbers.out_spec
    return (y_axes[1] < y_axes[0]) != _is_exchanged(problem)


def _order(problem: ConvProblem) -> list[int | None]:
    """For each axis of y its place in the product, or None if it has one output."""
    x_axes, _, y_axes = problem.spec.dimension_numbers
    kept = [0, *(i for i, keep in enumerate(_kept(problem), 2) if keep)]
    # The product has what is left of x in its order, and the features on one side.
    left = sorted(x_axes[i] for i in kept)
    features_first = _features_first(problem)
    order: list[int | None] = [None] * len(x_axes)
    for i in kept:
        order[y_axes[i]] = left.index(x_axes[i]) + features_first
    order[y_axes[1]] = 0 if features_first else len(left)
    return order


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Contract the channels and the summed axes."""
    if is_apart(problem):
        return _image_by_image(problem, x, kernel)
    x_axes, kernel_axes, _ = problem.spec.dimension_numbers
    kept = _kept(problem)
    single = [a for a, keep in zip(kernel_axes[2:], kept, strict=True) if keep]
    kernel = lax.squeeze(kernel, single)
    summed = [1, *(i for i, keep in enumerate(kept, 2) if not keep)]
    places = (
        (x_axes[i], kernel_axes[i] - sum(a < kernel_axes[i] for a in single))
        for i in summed
    )
    # In the order of x, and as one axis where they lie so: XLA moves them otherwise. 4
    # images of 39x39, 12 times 48 results 0.31 and 0.13 ms, a window of 5x5 on 16
    # images with 512 channels to 10 0.72 and 0.26 (Intel Xeon).
    of_x, of_kernel = zip(*sorted(places), strict=True)
    contracted = of_x, of_kernel
    if all(axes == tuple(range(axes[0], axes[-1] + 1)) for axes in contracted):
        x, kernel = _flat(x, of_x), _flat(kernel, of_kernel)
        contracted = of_x[:1], of_kernel[:1]
    number, size = blocks(problem)
    if number > 1:
        x, kernel = (factor.reshape(number, size, -1) for factor in (x, kernel))
        contracted = (1,), (1,)
    blocked = (0,) if number > 1 else ()
    left, right, precision = x, kernel, problem.precision
    if _features_first(problem):
        left, right, contracted = kernel, x, (contracted[1], contracted[0])
        precision = problem.exchanged_precision
    sums = problem.sum_dtype
    if problem.dtype == jnp.bfloat16 and right.ndim > 2 + len(blocked):
        # XLA:CPU ends with an error where the second factor keeps several axes.
        left, right = left.astype(sums), right.astype(sums)
    y = lax.dot_general(
        left,
        right,
        (contracted, (blocked, blocked)),
        precision=precision,
        preferred_element_type=sums,
    )
    y = (y.sum(0, dtype=sums) if blocked else y).astype(problem.output_dtype)
    order = _order(problem)
    if _is_exchanged(problem):
        y = lax.optimization_barrier(y)  # else XLA exchanges the factors once more
    y = y.transpose([place for place in order if place is not None])
    return lax.expand_dims(y, [a for a, place in enumerate(order) if place is None])


def _flat(array: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The array with the axes, which are neighbours, as one."""
    return array.reshape(*array.shape[: axes[0]], -1, *array.shape[axes[-1] + 1 :])


def _image_by_image(problem: ConvProblem, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The products of the images, [N, F, I]; for kernel gradients their sum, [F, N]."""
    feature, in_feature, *taps = problem.spec.dimension_numbers.rhs_spec
    x = x.reshape(*x.shape[:2], -1)
    is_gradient = problem.is_kernel_gradient
    if is_gradient:
        kernel, contracted = kernel.reshape(*kernel.shape[:2], -1), 2
    else:
        kernel = kernel.transpose(feature, in_feature, *taps).reshape(1, -1, x.shape[1])
        # Else XLA folds the transposition into the product, which is 1.4 times slower.
        kernel = lax.optimization_barrier(kernel.repeat(len(x), axis=0))
        contracted = 1
    factors, precision = (kernel, x), problem.exchanged_precision
    if is_gradient and not _features_first(problem):
        factors, precision = (x, kernel), problem.precision
    sums = problem.sum_dtype
    y = lax.dot_general(
        *factors,
        (((2,), (contracted,)), ((0,), (0,))),
        precision=precision,
        preferred_element_type=sums,
    )
    y = y.sum(0, dtype=sums) if is_gradient else y
    return y.astype(problem.output_dtype).reshape(problem.output_shape)
