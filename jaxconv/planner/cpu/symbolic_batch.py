"""Batches whose size is not known until the program runs."""

from collections.abc import Callable

from jaxconv.algorithms import by_image
from jaxconv.planner.choice import Plan
from jaxconv.planner.cpu.routines import has_routine
from jaxconv.spec import ConvProblem

TOGETHER = frozenset({"direct", "channels_last", "overlap_add", "pad", "product"})
"""What XLA:CPU computes as fast for all images, or faster, than one by one.

Dense layers of the zoo, exported for any batch, take 0.45 to 1.0 times stock's speed
image by image (1.4 where that is a product of patches).
"""


def rule(problem: ConvProblem, plan: Callable[[ConvProblem], Plan]) -> Plan | None:
    """Image by image, where a single image has a faster algorithm than XLA's.

    Of the zoo's layers, exported for any batch, depthwise ones are 12 to 50 times as
    fast as stock so, and a half of the speed that they have with their batch known;
    groups of 8 1.7 times, pointwise ones 1.1 and 1.8; phases 1.06 to 50 times (Intel
    Xeon, 4 to 64 images).

    Args:
      problem: of a symbolic batch.
      plan: of one image.
    """
    if not by_image.applies(problem):
        return None
    _, one = by_image.of_block(problem)
    spec = one.spec
    dense = spec.groups == 1 and not spec.is_input_dilated
    if dense and len(one.x_spatial) <= 2 and has_routine(one):
        return None
    chosen = plan(one)
    if chosen.algorithm in TOGETHER:
        return None
    reason = f"one of an unknown number of images at a time: {chosen.reason}"
    return Plan("by_image", reason)
