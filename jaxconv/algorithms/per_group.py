"""A grouped convolution as one convolution per group.

With c = (g, c') and f = (g, f'),

    y[n, (g, f'), o] = Σ_{c', t} x̃[n, (g, c'), s·o + d·t − p] · k[(g, f'), c', t]

is for each g an ungrouped convolution. They are computed one after the other, by the
same code, on x with the groups outermost.

Applies to feature groups. Costs a transposition of x and of y. XLA:CPU takes a channel
of a grouped convolution at a time.
"""

import math

import jax
import jax.numpy as jnp

from jaxconv.algorithms.axes import countable
from jaxconv.algorithms.blocks import (
    at,
    blocks_of,
    parted,
    stacked,
)
from jaxconv.algorithms.order import transposed, written
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem, in_order

BLOCK = 4 << 20
"""Bytes that are transposed at a time; not more than twice this for one image."""


def applies(problem: ConvProblem) -> bool:
    """There are feature groups, countable sizes, and an image is not too large."""
    grouped = problem.spec.feature_group_count > 1 and countable(problem)
    return grouped and _image(problem) <= 2 * BLOCK


def cost(problem: ConvProblem) -> float:
    """Seconds, about: x and y transposed, windows read, and something for each group.

    Runs of fewer than 4 channels are transposed so much more slowly, and windows of
    fewer than 8 are read more slowly. Fitted as the cost of `patches` is.
    """
    G = problem.spec.feature_group_count
    moved = 0.53e-9 * math.prod(problem.x_shape) / min(1.0, problem.channels / 4)
    f = problem.features / G
    moved += 0.64e-9 * math.prod(problem.output_shape) / min(1.0, f / 4)
    moved += 0.25e-9 * transposed(problem)
    reads = problem.batch * problem.outputs * problem.taps * G
    read = 0.7e-9 + 0.14e-9 * problem.channels + (1e-9 if problem.channels < 8 else 0.0)
    return 2.1e-5 + 2.8e-6 * G + moved + read * reads


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Convolve group by group."""
    spec, G = problem.spec, problem.spec.feature_group_count
    x = spec.images(x)
    kernel = _groups_first(spec.filters(kernel), G)
    single = spec.replace(
        feature_group_count=1,
        members=1,
        dimension_numbers=in_order(len(problem.x_spatial)),
    )
    blocks = blocks_of(len(x), max(BLOCK // _image(problem), 1))

    def of_images(images: jax.Array) -> jax.Array:
        size, images = len(images), _groups_first(images, G)

        def of_group(group: jax.Array) -> jax.Array:
            return conv(single, *(at(array, group) for array in (images, kernel)))

        shape = size, *problem.output_spatial, problem.features // G
        part = stacked(G, of_group, shape, problem.output_dtype, x)
        part = jnp.moveaxis(part, 0, -2)  # [n, *O, G, F/G]
        return part.reshape(*part.shape[:-2], -1)

    shape = *problem.output_spatial, problem.features
    return spec.laid_out(parted(x, blocks, of_images, shape, problem.output_dtype))


def _groups_first(array: jax.Array, groups: int) -> jax.Array:
    """[..., (G, c)] to [G, ..., c]."""
    array = array.reshape(*array.shape[:-1], groups, -1)
    return written(jnp.moveaxis(array, -2, 0))


def _image(problem: ConvProblem) -> int:
    """Bytes of one image of x and of y, which are transposed together."""
    return (problem.x_bytes + problem.y_bytes) // problem.batch
