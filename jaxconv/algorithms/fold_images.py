"""A pointwise layer with its images and positions folded into one axis.

With one tap, stride 1 and no padding output i of image n reads entry i alone, and

    y[(n, i), f] = Σ_c x[(n, i), c] · k[f, c]

is a convolution of one tap along the one axis of all (n, i), of a single image.

XLA:CPU makes a product of pointwise layers of one axis, as it does of those of three,
but not of those of two. It does so late: this product is Eigen's, where those that a
program has from the start are YNNPACK's since jax 0.11.

Applies to layers with the channels last. Costs nothing but a transposition of the
kernel where its features do not stand last. Measured on 2 cores of an AMD EPYC without
AVX-512, jax 0.12.0.1, float32, as a product and so: 32 sequences of 501 points, 128 to
192 channels, 6.6 and 5.6 ms, 8 images of 56x56 with 64 2.4 and 1.9.
"""

import jax

from jaxconv.algorithms import product
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem, in_order


def applies(problem: ConvProblem) -> bool:
    """A pointwise layer of several axes or images, whose channels stand last."""
    x_axes, _, y_axes = problem.spec.dimension_numbers
    in_place = x_axes == y_axes and problem.spec.channels_last
    return in_place and product.is_pointwise(problem) and not is_folded(problem)


def is_folded(problem: ConvProblem) -> bool:
    """Whether there is one axis and one image, and all stands in order."""
    numbers = problem.spec.dimension_numbers
    return problem.batch == 1 and numbers == in_order(1)


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Convolve along the one axis."""
    # Within a loop XLA makes a product of this order alone.
    kernel = problem.spec.filters(kernel)
    row = problem.spec.replace(
        window_strides=(1,),
        padding=((0, 0),),
        lhs_dilation=(1,),
        rhs_dilation=(1,),
        dimension_numbers=in_order(1),
    )
    y = conv(
        row,
        x.reshape(1, -1, problem.channels),
        kernel.reshape(1, problem.channels, problem.features),
    )
    return y.reshape(problem.output_shape)
