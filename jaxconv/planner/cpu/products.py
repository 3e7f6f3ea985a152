"""Layers that are matrix products as they stand, of all channels or of each group."""

import jax.numpy as jnp

from jaxconv.algorithms import (
    by_tap,
    fold_images,
    patches_gradient,
    pointwise_groups,
    product,
    shifts,
)
from jaxconv.planner.choice import Plan, is_in_a_row
from jaxconv.planner.cpu.routines import is_fast
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem

FULL = 32
"""Channels or features below which XLA's convolution is faster than its product.

Pointwise layers of 8 to 24, 3 to 8, 96 to 3 and 1024 to 8 channels: 0.59 to 0.76 of
stock's speed by a product (AMD EPYC with AVX-512).
"""

FEW, SEVERAL = 16, 64
"""Channels, and features, below both of which that is so on other processors.

Of 620 random pointwise layers with less than 32 of either, those that have as many took
1.04 to 1.65 times as long by the convolution, in the mean of 30 kinds (Intel Xeon). On
an AMD EPYC without AVX-512 the choice takes 1.05 times as long as the better over 126
random ones, and 1.19 with the bounds above.
"""

EIGEN_TERMS, EIGEN_FEATURES = range(3, 257), range(16, 513)
"""Channels and features of pointwise layers whose product Eigen is to compute, on
narrow vectors.

Of 652 random pointwise layers and input gradients 382 have as many, and are 1.08 times
as fast as before; of 354 others, drawn for a test, 200, 1.09 times (AMD EPYC without
AVX-512). With more features 0.9 times, and with fewer, from many channels, 0.7.
"""

ADDED, ADDED_STRIDED = 16, 8
"""Channels from which on groups of one feature are products; with strides.

Fewer are added up entry by entry. Over 153 random layers of 2 to 48 channels in each
of 2 to 32 groups, in either layout, 1.8 times as fast as without in geometric
mean, 0.55 to 7.4. So were 67 others, of which 3 are below 0.9 of stock's speed, and
are without (Intel Xeon with AVX-512; jax 0.12.0.1, float32).
"""


def dense(problem: ConvProblem, processor: Processor) -> Plan | None:
    """A matrix product as it stands.

    Pointwise layers: 1.2 to 3 times as fast as stock; with the channels first 256 to 96
    on 4 images of 64x65 1.3 times image by image, 0.73 as one product.
    """
    if not product.applies(problem):
        return None
    if product.is_apart(problem):
        return Plan("product", "a matrix product of each image")
    features = problem.features
    if problem.is_kernel_gradient:
        few = min(problem.batch, features) < FULL
        if few and product.blocks(problem)[1] > patches_gradient.CHAIN:
            return None  # stock's sum of so many terms in a row is more accurate
        return Plan("product", "a matrix product")
    if _is_sum(problem):
        return Plan("direct", "sums over channels, which XLA:CPU computes as such")
    terms = problem.channels * problem.taps
    if processor is Processor.NARROW and _is_eigens(problem):
        if fold_images.applies(problem):
            return Plan("fold_images", "a matrix product by Eigen")
        if fold_images.is_folded(problem):
            return Plan("direct", "a matrix product, which XLA leaves to Eigen")
    if processor is Processor.WIDE_AMD:
        few = min(terms, features) < FULL
    else:
        few = terms < FEW and features < SEVERAL
    if few:
        return Plan("direct", "a product with so few columns is slower")
    return Plan("product", "a matrix product")


def _is_sum(problem: ConvProblem) -> bool:
    """Whether it is a pointwise layer of one feature that XLA:CPU has no routine for.

    In one and three axes it computes a matrix times a vector as sums, in the loop that
    reads x: of 30 layers of 16 to 512 channels 1.20 times as fast as the product in
    geometric mean, 0.92 at least, 2.5 at most, and 1.23 on jax 0.10.2 (AMD EPYC without
    AVX-512). In two axes YNNPACK's routine takes up to twice as long as the product.
    """
    single = problem.features == 1 and len(problem.x_spatial) in (1, 3)
    known = single and problem.spec.channels_last and is_fast(problem.dtype)
    return known and product.is_pointwise(problem)


def _is_eigens(problem: ConvProblem) -> bool:
    """Whether it is a pointwise layer of which Eigen's product is the faster one."""
    sizes = problem.channels in EIGEN_TERMS and problem.features in EIGEN_FEATURES
    return sizes and problem.dtype == jnp.float32 and product.is_pointwise(problem)


def grouped(problem: ConvProblem) -> Plan | None:
    """Groups of one tap for whose products nothing, or a part of x, is transposed.

    And those whose single feature is a sum of many channels.

    Over 64 random layers with the channels first 5 times as fast as stock, in geometric
    mean, and within 4 % of the best. One channel each is a scaling: 8 images of 56x56,
    16 to 64 channels, 0.08 ms, with copies of x 0.29, by stock 5.8 (AMD EPYC with
    AVX-512).
    """
    scaled = by_tap.applies(problem) and problem.taps == problem.channels == 1
    if scaled and not (is_in_a_row(problem) and shifts.applies(problem)):
        return Plan("by_tap", "each channel times its weights, entry by entry")
    if problem.channels == 1 or not pointwise_groups.applies(problem):
        return None
    several = problem.features > problem.spec.groups
    strided = problem.spec.is_strided
    many = problem.channels >= (ADDED_STRIDED if strided else ADDED)
    if pointwise_groups.is_apart(problem) or (strided if several else many):
        return Plan("pointwise_groups", "products of what all outputs read")
    return None
