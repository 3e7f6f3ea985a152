"""Blocks of images, rows, channels or groups, where a plan would copy too much."""

import math

from jaxconv.algorithms import (
    by_channels,
    by_groups,
    by_image,
    by_rows,
    subpixel,
)
from jaxconv.algorithms.blocks import NEW_PAGES
from jaxconv.algorithms.windows import padded_bytes
from jaxconv.planner.choice import Plan
from jaxconv.spec import ConvProblem

CUT, COPY = 1.5, 40 << 20
"""Times as many entries as y, from which on phases take more memory than XLA's copy of
y; and bytes of y from which on blocks are as fast.

At once five of 50 MB took 1.10 to 1.42 times as long as in blocks, and most of 30 MB
0.8 times (AMD EPYC without AVX-512).
"""


def bounded(problem: ConvProblem, chosen: Plan) -> Plan:
    """The plan, or blocks where what it copies is too large."""
    if chosen.algorithm in ("subpixel", "depthwise"):
        return _by_images(problem, chosen)
    if chosen.algorithm in ("patches_gradient", "slices_gradient"):
        return _by_terms(problem, chosen)
    return chosen


def _by_terms(problem: ConvProblem, chosen: Plan) -> Plan:
    """By blocks of channels or groups, or else of images, where x̃ is too large.

    Kernel gradients of 3x3 taps with dilation and padding 12 on images of 14x14: 512
    to 512 channels in 8 groups, 32 images, 95 MB and 350 ms at once, 107 ms and 5 MB
    by blocks of images, which the channels are there (AMD EPYC without AVX-512).
    """
    own = math.prod(problem.x_shape) * problem.dtype.itemsize
    if padded_bytes(problem) <= 2 * own + by_channels.BLOCK:
        return chosen
    ways = {"by_channels": by_channels, "by_groups": by_groups, "by_image": by_image}
    divided = (
        name
        for name, way in ways.items()
        if way.applies(problem) and way.of_block(problem)[0] > 1
    )
    return chosen._replace(algorithm=next(divided, "direct"), reason=_reason(chosen))


def _reason(chosen: Plan) -> str:
    """Why blocks are taken."""
    return f"bounds the memory of {chosen.algorithm}"


def _by_images(problem: ConvProblem, chosen: Plan) -> Plan:
    """By blocks of images, or of rows, where a copy of x or y is too large.

    Sub-pixel phases need one of y before they interleave, and depthwise layers of
    several channels or features in each group one of x. Where y alone is large blocks
    take time: input gradients with 2 to 8 channels for each feature and 1 to 6 MB of x
    1.1 to 3.3 times as long as at once, with 29 MB 0.6 times (Intel Xeon). Phases of
    one tap and channel each XLA interleaves as it multiplies: 32 images of 56x56 with
    32 channels, 2x2 with stride 4, 1.3 ms and no memory, in blocks 5.6. Nor are phases
    of one axis copied where none is cut off: 16 taps with stride 3, 32 sequences of 841
    points, 32 channels, 3.8 ms and 0.1 MB, in blocks 9.3 (Intel Xeon). With the
    channels first XLA writes y a second time as well: over 58 random ones phases take
    0.80 times as long as in blocks of images, 0.55 to 1.21, and as much memory as stock
    where few are cut off (AMD EPYC without AVX-512). 25 of two axes take 0.78 times as
    long as in blocks of rows, but 12 of three axes 1.11, and 25 with groups 0.97 times.
    """
    phases, itemsize = chosen.algorithm == "subpixel", problem.dtype.itemsize
    channels, features = problem.channels, problem.features // problem.spec.groups
    alone = problem.spec.groups > 1 and channels == features == 1
    if alone and (not phases or subpixel.window(problem) == 1):
        return chosen  # which copies nothing
    if phases and subpixel.is_in_place(problem):
        return chosen
    read, written = math.prod(problem.x_shape), math.prod(problem.output_shape)
    copied = 0 if phases else max(read, read * features // channels)
    size = written if phases else min(copied, max(read, written))
    # Half as much again, so that a block is not divided again.
    large = 2 * size * itemsize > 3 * by_image.BLOCK
    large |= copied * itemsize > NEW_PAGES
    if not large:
        return chosen
    single = problem.batch == 1 or by_image.image_bytes(problem) > by_image.BLOCK
    # Rows are cut out of a copy of x with its zeros in place.
    small = 4 * read <= written
    moved = phases and _is_moved(problem)
    at_once = moved and len(problem.x_spatial) < 3
    rows = phases and single and small and by_rows.applies(problem)
    if rows and not at_once:
        return chosen._replace(algorithm="by_rows", reason=_reason(chosen))
    if by_image.applies(problem) and not moved:
        return chosen._replace(algorithm="by_image", reason=_reason(chosen))
    return chosen


def _is_moved(problem: ConvProblem) -> bool:
    """Whether XLA moves the features of y, which is not too large, without groups."""
    moved = problem.spec.groups == 1 and not problem.spec.features_last
    y_size = math.prod(problem.output_shape)
    small = y_size * problem.dtype.itemsize <= COPY
    return moved and small and subpixel.phase_entries(problem) < CUT * y_size


def is_whole(problem: ConvProblem, algorithm: str) -> bool:
    """Whether the algorithm is not divided into blocks for its memory."""
    return bounded(problem, Plan(algorithm, "")).algorithm == algorithm
