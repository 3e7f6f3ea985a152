"""What XLA:CPU has routines of its own for, and what lets it use them."""

from typing import Any

import jax.numpy as jnp

from jaxconv.algorithms import channels_last, pad
from jaxconv.planner.choice import Plan
from jaxconv.spec import ConvProblem

NEARLY = 0.9
"""Estimates are rough: what is not so much cheaper than XLA's own is not chosen.

Over 307 random dense kernel gradients on an AMD EPYC with AVX-512, the choice takes
1.07 times as long as the best in geometric mean, and stock 1.6 times as long as it.
With 0.7 it takes 1.12 times as long, with 1.2 1.09 times.
"""


def mended(problem: ConvProblem) -> Plan | None:
    """A plan that lets XLA:CPU use its own routine, by laying out zeros or axes."""
    if pad.mends(problem):
        return Plan(
            "pad",
            "padded first, as XLA:CPU is slow where taps are more than entries of x",
        )
    if _is_routine(problem):
        return Plan(
            "channels_last",
            "XLA:CPU's routine, with the axes in the order that it wants",
        )
    return None


def _is_routine(problem: ConvProblem) -> bool:
    """Whether XLA:CPU has a routine for it, if only the axes stand in order."""
    spec = problem.spec
    undilated = not spec.is_input_dilated
    return (
        problem.is_static
        and channels_last.applies(problem)
        and is_fast(problem.dtype)
        and 1 <= len(spec.window_strides) <= 3
        and spec.batch_group_count == 1
        and (undilated or is_product_and_scatter(problem))
    )


def is_product_and_scatter(problem: ConvProblem) -> bool:
    """Whether XLA:CPU computes an input-dilated convolution without its zeros.

    It does so for ungrouped ones in one or two dimensions whose windows take steps of
    one: a matrix product with the kernel, added up where windows overlap. It has that
    for floats of up to 32 bits; in float64, phases were 4 to 10 times faster than stock
    on layers of 3x3, 1x1 and 4x4 taps with stride 2.
    """
    spec, dtype = problem.spec, problem.dtype
    ones = all(n == 1 for n in (*spec.window_strides, *spec.rhs_dilation))
    short = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits <= 32
    return short and ones and spec.groups == 1 and len(spec.window_strides) <= 2


def has_routine(problem: ConvProblem) -> bool:
    """Whether XLA:CPU has one for an undilated input.

    For doubles in two dimensions: 3x3 at 25 with 29 channels takes 0.7 ms, and by
    patches 2.4 (1.2 and 2.7 on jax 0.10.2); in one dimension, 200 points with 64
    channels, 3.0 and 0.2. Complex ones are three real ones: 0.3 and 0.7 ms, and 2.1 and
    4.0 in two dimensions.
    """
    dtype, rank = problem.dtype, len(problem.x_spatial)
    if is_complex(dtype):
        return rank <= 2
    return is_fast(dtype) or (dtype == jnp.float64 and rank == 2)


def is_fast(dtype: Any) -> bool:
    """Whether XLA:CPU has a routine for the dtype: floats of up to 32 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits <= 32


def is_complex(dtype: Any) -> bool:
    """Whether products are complex, of which XLA:CPU's are slower than real ones."""
    return jnp.issubdtype(dtype, jnp.complexfloating)
