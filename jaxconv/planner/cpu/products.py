"""Layers that are matrix products as they stand, of all channels or of each group."""

import math

from jaxconv.algorithms import (
    by_tap,
    patches_gradient,
    pointwise_groups,
    product,
    shifts,
)
from jaxconv.planner.choice import Plan, is_in_a_row, is_kernel_gradient
from jaxconv.spec import ConvProblem

NARROW = 32
"""Channels or features below which XLA's convolution is faster than its product.

Pointwise layers of 8 to 24, 3 to 8, 96 to 3 and 1024 to 8 channels: 0.59 to 0.76 of
stock's speed by a product (AMD EPYC with AVX-512).
"""

ADDED, ADDED_STRIDED = 16, 8
"""Channels from which on groups of one feature are products; with strides.

Fewer are added up entry by entry. Over 153 random layers of 2 to 48 channels in each
of 2 to 32 groups, in either layout, 1.8 times as fast as the choice before in geometric
mean, 0.55 to 7.4. So were 67 others, of which 3 are below 0.9 of stock's speed, and
were before (Intel Xeon with AVX-512; jax 0.12.0.1, float32).
"""


def dense(problem: ConvProblem) -> Plan | None:
    """A matrix product as it stands.

    Pointwise layers: 1.2 to 3 times as fast as stock; with the channels first 256 to 96
    on 4 images of 64x65 1.3 times image by image, 0.73 as one product.
    """
    if not product.applies(problem):
        return None
    terms = problem.channels * math.prod(problem.kernel_spatial)
    chain, columns = patches_gradient.CHAIN, min(problem.batch, problem.features)
    if product.is_apart(problem) and terms <= chain * problem.channels:
        return Plan("product", "a matrix product of each image")
    if terms > chain and columns < NARROW and is_kernel_gradient(problem):
        return None  # stock's sum of so many terms is more accurate than one product
    if min(terms, problem.features) < NARROW and not is_kernel_gradient(problem):
        return Plan("direct", "a product with so few columns is slower")
    return Plan("product", "a matrix product")


def grouped(problem: ConvProblem) -> Plan | None:
    """Groups of one tap for whose products nothing, or a part of x, is transposed.

    And those whose single feature is a sum of many channels.

    Over 64 random layers with the channels first 5 times as fast as stock and as the
    choice before, in geometric mean, and within 4 % of the best. One channel each is a
    scaling: 8 images of 56x56, 16 to 64 channels, 0.08 ms, with copies of x 0.29, by
    stock 5.8 (AMD EPYC with AVX-512).
    """
    taps, in_a_row = math.prod(problem.kernel_spatial), is_in_a_row(problem)
    scaled = by_tap.applies(problem) and taps == problem.channels == 1
    if scaled and not (in_a_row and shifts.applies(problem)):
        return Plan("by_tap", "each channel times its weights, entry by entry")
    if problem.channels == 1 or not pointwise_groups.applies(problem):
        return None
    several = problem.features > problem.spec.groups
    strided = max(problem.spec.window_strides, default=1) > 1
    many = problem.channels >= (ADDED_STRIDED if strided else ADDED)
    if pointwise_groups.is_apart(problem) or (strided if several else many):
        return Plan("pointwise_groups", "products of what all outputs read")
    return None
