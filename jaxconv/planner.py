"""Which algorithm computes a convolution: a pure function of problem and platform.

A rule may look at geometry, dtypes and platform, never at a layer's name, and says in
its reason why it chose. Where nothing was measured to be better the plan is `direct`,
the program that stock JAX emits.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp

from jaxconv.algorithms import crop, empty, subpixel
from jaxconv.spec import ConvProblem

SCATTER = 64
"""Multiplications that cost about as much as adding one entry of a product up.

XLA:CPU has a routine for some input-dilated convolutions: a product, whose entries it
adds up where windows overlap. Sub-pixel phases need no adding up, but multiply by the
zeros that fill up their windows: (overhead - 1) times the channels more for each entry.
Measured on 2 cores of an AMD EPYC, jax 0.12.0.1, float32, stock's time over ours and
these further multiplications: ViT patch 16 23 to 28 (0), 8x8 stride 4 4.7 (0), 4x4
stride 4 0.8 to 1.0 (0), 7x7 stride 2 1.2 to 1.8 (20), 3x3 stride 2 0.64 (100), 1-D of
3 taps and stride 2 0.9 to 1.1 (128), transposed 4x4 stride 2 0.51 (160), 1x1 stride 2
0.27 (1536). jax 0.10.2 gave the same order.
"""


class Plan(NamedTuple):
    """A choice and why it was made.

    Attributes:
      algorithm: a key of `jaxconv.algorithms.ALGORITHMS`.
      reason: one sentence.
    """

    algorithm: str
    reason: str


def plan(problem: ConvProblem, platform: str) -> Plan:
    """Choose the algorithm for `problem` on `platform`.

    Args:
      problem: what is to be computed.
      platform: "cpu", or anything else for the platforms without measured rules.

    Returns:
      The plan. Algorithms leave smaller convolutions, which are planned in turn.

    Example:
      >>> import numpy as np
      >>> from jaxconv.arguments import Caller, conv_spec
      >>> shapes = (1, 3, 8), (4, 3, 2)
      >>> spec = conv_spec(Caller("conv"), *shapes, window_strides=(1,),
      ...                  padding=[(1, 1)], lhs_dilation=(2,))
      >>> plan(ConvProblem(spec, *shapes, np.dtype("float32")), "cpu").algorithm
      'subpixel'
    """
    if empty.applies(problem):
        return Plan("empty", "a sum of no terms is zero")
    if crop.applies(problem):
        return Plan("crop", "negative padding is computed wrongly by some XLA backends")
    if not problem.is_static:
        return Plan("direct", "a symbolic size cannot be planned")
    return _static_plan(problem, platform)


@functools.lru_cache(maxsize=4096)
def _static_plan(problem: ConvProblem, platform: str) -> Plan:
    """`plan` for problems of known sizes, whose hashes and comparisons are sound."""
    if platform != "cpu":
        return Plan("direct", f"nothing was measured to be faster on {platform}")
    if problem.out_sharding is not None:
        return Plan("direct", "explicitly sharded: XLA partitions its own convolution")
    if subpixel.applies(problem):
        if not _is_product_and_scatter(problem):
            reason = "XLA:CPU multiplies by the zeros of a dilated input"
            return Plan("subpixel", reason)
        channels = problem.kernel_shape[problem.spec.dimension_numbers.rhs_spec[1]]
        further = (subpixel.overhead(problem) - 1) * channels
        if _windows_fit(problem) and further <= SCATTER:
            return Plan("subpixel", "a product alone, not a product and a scatter")
        return Plan("direct", "XLA:CPU has a product and a scatter for it")
    return Plan("direct", "XLA:CPU has a fast path for it, or nothing faster is known")


def _is_product_and_scatter(problem: ConvProblem) -> bool:
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


def _windows_fit(problem: ConvProblem) -> bool:
    """Whether there are more outputs than taps, as there are not in a kernel gradient.

    The kernel gradient of a transposed 4x4 layer with stride 2 took 267 ms by sub-pixel
    phases, windows of 17x17 for 2x2 outputs, and 170 ms by XLA's own.
    """
    return math.prod(problem.kernel_spatial) <= math.prod(problem.output_spatial)
