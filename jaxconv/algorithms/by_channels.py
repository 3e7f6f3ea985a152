"""A sum over channels, block of channels by block of channels.

The channels of the sum may be taken one block B after the other,

    y[n, f, o] = Σ_B Σ_{c ∈ B, t} x̃[n, c, s·o + d·t − p] · k[f, c, t],

in a loop whose body is a convolution of fewer channels. Of a kernel gradient these are
the layer's images.

Applies to more than one channel without feature groups. It bounds the temporary memory
of the inner convolution: x with its zeros, of which `BLOCK` bytes are taken at a time.
Costs a read and a write of y for each block.
"""

import dataclasses

import jax
from jax import lax

from jaxconv.algorithms.axes import countable
from jaxconv.algorithms.blocks import block, blocks_of, cut, only, summed
from jaxconv.algorithms.padding import padded_bytes
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem

BLOCK = 4 << 20
"""Bytes of x with its zeros that are taken at a time, or those of one channel."""


def applies(problem: ConvProblem) -> bool:
    """More than one channel, no feature groups, and sizes that can be counted."""
    ungrouped = problem.spec.feature_group_count == 1
    return ungrouped and countable(problem) and problem.channels > 1


def of_block(problem: ConvProblem) -> tuple[int, ConvProblem]:
    """How many blocks there are, and the problem of one."""
    channels = problem.channels
    most = max(BLOCK * channels // padded_bytes(problem), 1)
    count, size = blocks_of(channels, most)
    x_shape, kernel_shape = list(problem.x_shape), list(problem.kernel_shape)
    layout = problem.spec.dimension_numbers
    x_shape[layout.lhs_spec[1]] = kernel_shape[layout.rhs_spec[1]] = size
    shapes = {"x_shape": tuple(x_shape), "kernel_shape": tuple(kernel_shape)}
    return count, dataclasses.replace(problem, **shapes)


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Add up what the blocks of channels give."""
    (_, channel, *_), (_, in_feature, *_), _ = problem.spec.dimension_numbers
    (count, one), sums = of_block(problem), problem.sum_dtype
    size, total = one.channels, problem.channels

    def term(index: jax.Array) -> jax.Array:
        start, _, new = block(index, count, size, total)
        # Both: zero times an infinity would not be zero.
        own = only(new, cut(x, {channel: (start, size)}), channel)
        k = only(new, cut(kernel, {in_feature: (start, size)}), in_feature)
        # Else what reads them reads the whole, of which they are to be a small copy.
        return conv(one.spec, *lax.optimization_barrier((own, k))).astype(sums)

    y = summed(count, term, problem.output_shape, sums, x)
    return y.astype(problem.output_dtype)
