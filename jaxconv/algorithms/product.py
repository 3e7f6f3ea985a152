"""A convolution that is a matrix product as it stands.

Along an axis where the window has one tap, stride 1 and no padding, output o reads
entry o alone; along one where the window covers all of x and there is one output, tap t
reads entry t alone. With every axis of one of the two kinds, i and j for those of the
first and of the second,

    y[n, f, i] = Σ_{c, j} x[n, c, i, j] · k[f, c, j]

is a product of the two arrays, contracted over c and j. Pointwise layers, their
gradients, and layers whose window is the whole image are of this kind.

Applies without groups, dilated inputs or padding. Costs a transposition of y where the
layout asks for one. Kernel gradients of 1x1 layers took XLA:CPU 2 to 3 times as long:
1024 to 256 channels on 8 images of 14x14 10 ms, and so 4 (2 cores of an Intel Xeon, jax
0.12.0.1, float32).
"""

from collections.abc import Callable

import jax
from jax import lax

from jaxconv.algorithms.windows import Axis, accumulator, axes_of, countable
from jaxconv.spec import ConvProblem


def _is_kept(axis: Axis) -> bool:
    """One tap that reads the entry of its output."""
    alone = axis.taps == axis.stride == axis.lhs_dilation == 1 and axis.low == 0
    return alone and axis.outputs == axis.size


def _is_summed(axis: Axis) -> bool:
    """One output whose taps read all entries in turn."""
    alone = axis.outputs == axis.lhs_dilation == axis.rhs_dilation == 1
    return alone and axis.low == 0 and axis.taps == axis.size


def applies(problem: ConvProblem) -> bool:
    """No groups, and every axis is kept or summed."""
    return (
        problem.spec.groups == 1
        and countable(problem)
        and all(_is_kept(axis) or _is_summed(axis) for axis in axes_of(problem))
    )


def run(
    problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Callable
) -> jax.Array:
    """Contract the channels and the summed axes."""
    x_axes, kernel_axes, y_axes = problem.spec.dimension_numbers
    kept = [_is_kept(axis) for axis in axes_of(problem)]
    kernel = lax.squeeze(
        kernel, [a for a, keep in zip(kernel_axes[2:], kept, strict=True) if keep]
    )
    squeezed = {
        axis: axis
        - sum(a < axis for a, keep in zip(kernel_axes[2:], kept, strict=True) if keep)
        for axis in kernel_axes
    }
    summed = [i for i, keep in enumerate(kept, 2) if not keep]
    contracted = (
        [x_axes[i] for i in (1, *summed)],
        [squeezed[kernel_axes[i]] for i in (1, *summed)],
    )
    y = lax.dot_general(
        x,
        kernel,
        (contracted, ((), ())),
        precision=problem.precision,
        preferred_element_type=accumulator(problem),
    ).astype(problem.output_dtype)
    # The result has what is left of x in its order, then the features.
    left = sorted({*range(x.ndim)} - {*contracted[0]})
    source = {axis: place for place, axis in enumerate(left)}
    order: list[int | None] = [None] * x.ndim
    order[y_axes[0]], order[y_axes[1]] = source[x_axes[0]], len(left)
    for i, keep in enumerate(kept, 2):
        if keep:
            order[y_axes[i]] = source[x_axes[i]]
    y = y.transpose([place for place in order if place is not None])
    return lax.expand_dims(y, [a for a, place in enumerate(order) if place is None])
