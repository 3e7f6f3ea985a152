"""A convolution block of images by block of images.

y[n, f, o] depends on x[n, ·, ·] alone, so that the images may be taken one block after
the other, in a loop whose body is a convolution of fewer images.

Applies to more than one image without batch groups; a symbolic number of them is taken
one by one, so that a program that was exported for any batch has convolutions of known
sizes. It bounds the temporary memory of the inner convolution, `BLOCK` bytes of
x and of y, and costs a copy of these; planners know what theirs cost more in a loop.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax import lax

from jaxconv.algorithms.axes import countable
from jaxconv.algorithms.blocks import blocks_of, parted
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem, is_static

BLOCK = 4 << 20
"""Bytes of x and of y together that are taken at a time, or those of one image.

Phases are copied once more to be interleaved: with blocks of half the size, 7x7 with
stride 2 in 2 groups takes 5 MB instead of 10, and 8.2 ms instead of 9.3.
"""


def applies(problem: ConvProblem) -> bool:
    """More than one image, no batch groups, and sizes that can be counted."""
    if problem.spec.batch_group_count != 1:
        return False
    if not is_static(problem.batch):
        return countable(_of_images(problem, 1))
    return problem.batch > 1 and countable(problem)


def image_bytes(problem: ConvProblem) -> int:
    """Bytes of one image of x or of y, whichever is larger.

    Of x as it is copied for depthwise layers, each channel for each of its features.
    """
    depthwise = problem.spec.groups > 1 and problem.channels == 1
    copies = problem.features // problem.spec.groups if depthwise else 1
    return max(copies * problem.x_bytes, problem.y_bytes) // problem.batch


def of_block(problem: ConvProblem) -> tuple[int, ConvProblem]:
    """How many blocks there are, and the problem of one, its images outermost."""
    if not is_static(problem.batch):
        return problem.batch, _of_images(problem, 1)
    most = max(BLOCK // (2 * image_bytes(problem)), 1)
    count, size = blocks_of(problem.batch, most)
    return count, _of_images(problem, size)


def _of_images(problem: ConvProblem, size: int) -> ConvProblem:
    """The problem of so many images, which stand outermost."""
    x_axes, k_axes, y_axes = problem.spec.dimension_numbers
    (order, inner_x), (_, inner_y) = map(_images_first, (x_axes, y_axes))
    inner = problem.spec.replace(
        dimension_numbers=lax.ConvDimensionNumbers(inner_x, k_axes, inner_y)
    )
    x_shape = (size, *(problem.x_shape[axis] for axis in order[1:]))
    return dataclasses.replace(problem, spec=inner, x_shape=x_shape)


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Convolve the blocks one after the other, all other axes as they stand."""
    x_axes, _, y_axes = problem.spec.dimension_numbers
    (x_order, _), (y_order, _) = map(_images_first, (x_axes, y_axes))
    count, one = of_block(problem)
    y = parted(
        x.transpose(x_order),
        (count, one.batch),
        lambda images: conv(one.spec, images, kernel),
        [problem.output_shape[axis] for axis in y_order[1:]],
        problem.output_dtype,
        routine=False,
    )
    return y.transpose(np.argsort(y_order))


def _images_first(axes: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
    """The axes with the batch moved to the front, and where each is then."""
    order = sorted(range(len(axes)), key=lambda axis: axis != axes[0])
    return order, tuple(order.index(axis) for axis in axes)
