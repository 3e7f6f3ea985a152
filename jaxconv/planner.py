"""Which algorithm computes a convolution: a pure function of problem and platform.

A rule may look at geometry, dtypes and platform, never at a layer's name, and says in
its reason why it chose. Where nothing was measured to be better the plan is `direct`,
the program that stock JAX emits.
"""

import functools
from typing import NamedTuple

from jaxconv.algorithms import crop, empty, subpixel
from jaxconv.spec import ConvProblem


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
        return Plan("subpixel", "XLA:CPU multiplies by the zeros of a dilated input")
    return Plan("direct", "XLA:CPU has a fast path for it, or nothing faster is known")
