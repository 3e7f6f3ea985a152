"""A grouped convolution of one tap, as a matrix product for each group.

With c = (g, c') and f = (g, f'), outputs read one entry each,

    y[n, (g, f'), o] = Σ_{c'} x̃[n, (g, c'), s·o − p] · k[(g, f'), c'],

which are products of the same sizes, and XLA:CPU computes them together. A product
wants what it sums over and what it does not side by side: where the channels stand
first, they stand like that in each image and group, and where they stand last, they are
put in order for some rows at a time, in the cache.

Applies to feature groups of one tap over an undilated input. Costs a copy of the kernel
for each image, or of x and y by blocks. Two groups of 64 channels and 32 features on 8
images of 75x28 take 0.12 ms channels first (0.28 by stock), 8 of 16 and 16 on 25088
points 2.3 ms channels last (6.5 by stock; AMD EPYC with AVX-512, jax 0.12.0.1,
float32).
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.algorithms.axes import axes_of, countable
from jaxconv.algorithms.blocks import blocks_of, parted
from jaxconv.algorithms.padding import spanned
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem

BLOCK = 4 << 20
"""Bytes of x, or of y, that are put in order at a time.

28 MB of both take 3.0 ms in such parts and 6.0 ms at once, in fresh pages; 11 MB 1.2
and 1.1 ms.
"""


def applies(problem: ConvProblem) -> bool:
    """Feature groups of one tap, an undilated input, and sizes that can be counted."""
    return (
        problem.spec.feature_group_count > 1
        and countable(problem)
        and all(axis.taps == axis.lhs_dilation == 1 for axis in axes_of(problem))
    )


def is_apart(problem: ConvProblem) -> bool:
    """Whether each image and group has a product for which nothing is transposed."""
    x_axes, _, y_axes = problem.spec.dimension_numbers
    in_place = x_axes == y_axes == tuple(range(len(x_axes)))
    weights = problem.channels * problem.features
    rows = problem.channels * problem.spec.groups + problem.features
    return in_place and 4 * weights <= problem.outputs * rows


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Multiply group by group."""
    spec = problem.spec
    places, steps = spec.dimension_numbers.lhs_spec[2:], [1] * x.ndim
    x = spanned(x, places, axes_of(problem))
    for place, step in zip(places, spec.window_strides, strict=True):
        steps[place] = step
    x = lax.slice(x, [0] * x.ndim, x.shape, steps)
    feature, in_feature, *taps = spec.dimension_numbers.rhs_spec
    kernel = kernel.transpose(*taps, feature, in_feature)
    kernel = kernel.reshape(spec.groups, -1, problem.channels)  # [G, f, c]
    if is_apart(problem):
        return _image_by_image(problem, x, kernel)
    return _by_rows(problem, x, kernel)


def _image_by_image(problem: ConvProblem, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The products of each image and group, [N, G, f, O]."""
    x = x.reshape(len(x), *kernel.shape[::2], -1)
    # Else XLA folds the transposition into the product, which is slower.
    kernel = lax.optimization_barrier(jnp.broadcast_to(kernel, (len(x), *kernel.shape)))
    y = lax.dot_general(
        kernel,
        x,
        (((3,), (2,)), ((0, 1), (0, 1))),
        precision=problem.exchanged_precision,
        preferred_element_type=problem.sum_dtype,
    )
    return y.reshape(problem.output_shape).astype(problem.output_dtype)


def _by_rows(problem: ConvProblem, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The products of some rows at a time."""
    groups, f, c = kernel.shape
    x = problem.spec.images(x).reshape(-1, groups, c)
    row = max(problem.x_bytes, problem.y_bytes) // len(x)

    def product(rows: jax.Array) -> jax.Array:
        part = lax.dot_general(
            rows,
            kernel,
            (((2,), (2,)), ((1,), (0,))),
            precision=problem.precision,
            preferred_element_type=problem.sum_dtype,
        )  # [G, rows, f]
        return part.swapaxes(0, 1).astype(problem.output_dtype)

    if row * len(x) > 2 * BLOCK:
        blocks = blocks_of(len(x), max(BLOCK // row, 1))
        y = parted(x, blocks, product, (groups, f), problem.output_dtype)
    else:
        y = product(x)
    shape = problem.batch, *problem.output_spatial, groups * f
    return problem.spec.laid_out(y.reshape(shape))
