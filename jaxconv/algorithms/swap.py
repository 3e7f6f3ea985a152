"""Input and kernel of a convolution exchanged.

Both stand in the sum alike: with x̃ and k̃ for the dilated ones, an entry of x̃ at
position L·i meets the entry of k̃ at position j = d·t = L·i − s·o + p. Counting the
outputs from the last, o = O − 1 − o', makes that

    j = s·o' + L·i − (s·(O − 1) − p),

a convolution of k with the kernel x, whose dilation is L, while d dilates its input:

    y[n, f, O − 1 − o'] = Σ_{c, i} k̃[f, c, s·o' + L·i − p'] · x[n, c, i],
    p' = s·(O − 1) − p.

Features and batch change places, and so do the dilations. Batch groups stay such, as
their blocks stand in the batch of x and in the features of k, and so do feature groups
once their blocks are moved there, and to the channels of k.

Applies to all convolutions of known sizes. Costs a flip of y. It pays where the window
has more taps than x has entries: so the gradient of a kernel gradient, which a penalty
on gradients and a step of meta-learning take. Its x is a tangent of the kernel, its
window an image, and exchanged it is a layer again: for one of 3x3 and 64 channels on 8
images of 28x28 102 ms by stock and 1.1, depthwise with 144 channels at 56 960 and 1.3
(AMD EPYC with AVX-512, jax 0.12.0.1, float32). An input that is dilated becomes a
kernel that is, whose zeros nobody multiplies by: so the kernel gradients of transposed
layers, 134 ms by stock and 159 ms for those of 256 and 4x4 taps. The other way round, a
small kernel that is dilated is copied with its zeros, and x stays as it lies: so those
of strided layers to few features (`planner.cpu.gradients`).
"""

import dataclasses

import jax
from jax import lax

from jaxconv.algorithms.protocol import Conv
from jaxconv.calculus import merge_axis, split_axis, swapped
from jaxconv.spec import ConvProblem, dilated


def applies(problem: ConvProblem) -> bool:
    """All sizes are known."""
    return problem.is_static


def swapped_problem(problem: ConvProblem) -> ConvProblem:
    """The convolution of k with the kernel x."""
    spec, padding = problem.spec, []
    x_axes, kernel_axes, y_axes = spec.dimension_numbers
    for (low, _), stride, outputs, size, taps, lhs, rhs in zip(
        spec.padding,
        spec.window_strides,
        problem.output_spatial,
        problem.x_spatial,
        problem.kernel_spatial,
        spec.lhs_dilation,
        spec.rhs_dilation,
        strict=True,
    ):
        reach = stride * (outputs - 1)
        extent = dilated(size, lhs) - dilated(taps, rhs)
        padding.append((reach - low, extent + low))
    spec = spec.replace(
        padding=tuple(padding),
        lhs_dilation=spec.rhs_dilation,
        rhs_dilation=spec.lhs_dilation,
        dimension_numbers=lax.ConvDimensionNumbers(
            kernel_axes, x_axes, swapped(y_axes)
        ),
    )
    x_shape, kernel_shape = list(problem.kernel_shape), list(problem.x_shape)
    if (G := spec.feature_group_count) > 1:
        x_shape[kernel_axes[0]] //= G
        x_shape[kernel_axes[1]] *= G
        kernel_shape[x_axes[0]] *= G
        kernel_shape[x_axes[1]] //= G
    return dataclasses.replace(
        problem,
        spec=spec,
        x_shape=tuple(x_shape),
        kernel_shape=tuple(kernel_shape),
        precision=problem.exchanged_precision,
    )


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Convolve `kernel` with `x`, and flip the result."""
    spec = problem.spec
    (batch, channel, *_), (feature, in_feature, *_), _ = spec.dimension_numbers
    y_batch, y_feature, *spatial = spec.dimension_numbers.out_spec
    if (G := spec.feature_group_count) > 1:
        x = merge_axis(split_axis(x, channel, G), channel, batch)
        kernel = merge_axis(split_axis(kernel, feature, G), feature, in_feature)
    inner = swapped_problem(problem)
    y = conv(inner.spec, kernel, x, precision=inner.precision)  # [F, (G, N), *O]
    if spec.groups > 1:
        y = merge_axis(split_axis(y, y_batch, spec.groups), y_batch, y_feature)
    return lax.rev(y, spatial)
