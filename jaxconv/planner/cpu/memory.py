"""Blocks of images or rows, where a plan would copy too much at once."""

import math

from jaxconv.algorithms import by_image, by_rows, depthwise
from jaxconv.planner.choice import Plan
from jaxconv.spec import ConvProblem


def bounded(problem: ConvProblem, chosen: Plan) -> Plan:
    """By blocks of images, or of rows, where a copy of x or y is too large.

    Sub-pixel phases need one before they interleave, and depthwise layers of several
    channels or features in each group one of x.
    """
    phases, G = chosen.algorithm == "subpixel", problem.spec.groups
    copies = phases or max(problem.channels, problem.features // G) > 1
    sizes = math.prod(problem.output_shape), math.prod(problem.x_shape)
    size = (sizes[0] if phases else max(sizes)) * problem.dtype.itemsize
    copied = 0 if phases else by_image.image_bytes(problem) * problem.batch
    # Half as much again, so that a block is not divided again.
    large = 2 * size > 3 * by_image.BLOCK or copied > depthwise.NEW
    if not copies or not large:
        return chosen
    reason = f"bounds the memory of {chosen.algorithm}"
    single = problem.batch == 1 or by_image.image_bytes(problem) > by_image.BLOCK
    # Rows are cut out of a copy of x with its zeros in place.
    small = 4 * math.prod(problem.x_shape) <= math.prod(problem.output_shape)
    if phases and single and small and by_rows.applies(problem):
        return chosen._replace(algorithm="by_rows", reason=reason)
    if by_image.applies(problem):
        return chosen._replace(algorithm="by_image", reason=reason)
    return chosen
