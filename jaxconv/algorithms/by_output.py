"""A depthwise convolution of few outputs: one sum over images and window for each.

The kernel gradient of a depthwise layer is one: batch groups of one image each, whose
window is as large as the layer's output, and whose outputs are the layer's taps. With
one feature in each group g, and channels c, which are the images of the layer,

    y[o, g] = Σ_{c, t} x̃[g, c, s·o + d·t − p] · k[g, c, t]

is for each o a sum of products of the kernel and a slice of x̃ as large as it. Nothing
but the sums is written, and operands of one layout are not transposed.

Applies to batch groups of one image and one feature each, an undilated input and few
outputs. Costs a read of x and of k for each output. Measured on an NVIDIA H100, jax
0.11.2, stock's microseconds and ours, 16 images of 2048 points, 512 channels, 4 taps:
255 and 113 in float32, 577 and 81 in bfloat16; 3x3 at 56, 64 images of 144 channels,
121 and 505. On CPUs it is planned for single outputs: 32 images of 28x28x28, 8
channels, 1.5 ms, summed entry by entry 3.4 (AMD EPYC with AVX-512).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.algorithms import depthwise_gradient
from jaxconv.algorithms.axes import axes_of
from jaxconv.algorithms.padding import is_small_copy, spanned
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import every
from jaxconv.spec import ConvProblem

SUMS = 64
"""Outputs up to which the program is not too long."""


def applies(problem: ConvProblem) -> bool:
    """Batch groups of one image and feature, undilated, few outputs, a small x̃."""
    spec = problem.spec
    single = problem.features == spec.batch_group_count
    few = problem.outputs <= SUMS
    undilated = not spec.is_input_dilated
    alone = depthwise_gradient.applies(problem) and single and few and undilated
    return alone and is_small_copy(problem)


def cost(problem: ConvProblem) -> float:
    """Seconds, about, of a single output: a read of x and of k, on a CPU.

    Fitted to 21 random kernel gradients of one tap as that of `depthwise_gradient` is.
    """
    read = math.prod(problem.x_shape) + math.prod(problem.kernel_shape)
    terms = math.prod(problem.kernel_shape) // problem.features
    return 3.1e-5 + 8e-11 * read + 3.3e-10 * terms


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Add up each output's products in the order of x's axes."""
    spec, axes, sums = problem.spec, axes_of(problem), problem.sum_dtype
    batch, channel, *spatial = spec.dimension_numbers.lhs_spec
    # Axes of the kernel, in the order of those of x that they meet.
    met = dict(
        zip((batch, channel, *spatial), spec.dimension_numbers.rhs_spec, strict=True)
    )
    kernel = kernel.transpose([met[place] for place in range(x.ndim)]).astype(sums)
    x = spanned(x, spatial, axes)

    def total(output: tuple[int, ...]) -> jax.Array:
        starts = [axis.stride * o for axis, o in zip(axes, output, strict=True)]
        own = every(x, spatial, starts, problem.kernel_spatial, spec.rhs_dilation)
        return (own.astype(sums) * kernel).sum((channel, *spatial), dtype=sums)

    y = jnp.stack([total(output) for output in np.ndindex(*problem.output_spatial)])
    y = y.astype(problem.output_dtype).reshape(1, *problem.output_spatial, -1)
    return spec.laid_out(y)
