"""Blocks of images, rows, channels or groups, where a plan would copy too much."""

import math
from collections.abc import Callable

from jaxconv.algorithms import (
    by_channels,
    by_groups,
    by_image,
    by_rows,
    subpixel,
)
from jaxconv.algorithms.blocks import NEW_PAGES
from jaxconv.algorithms.padding import padded_bytes
from jaxconv.algorithms.protocol import Divided
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
    divided = _DIVIDED.get(chosen.algorithm)
    block = divided(problem) if divided else None
    if block is None:
        return chosen
    reason = f"bounds the memory of {chosen.algorithm}"
    return chosen._replace(algorithm=block, reason=reason)


def _gradient(problem: ConvProblem) -> str | None:
    """By blocks of channels or groups, or else of images, where x̃ is too large.

    Kernel gradients of 3x3 taps with dilation and padding 12 on images of 14x14: 512
    to 512 channels in 8 groups, 32 images, 95 MB and 350 ms at once, 107 ms and 5 MB
    by blocks of images, which the channels are there (AMD EPYC without AVX-512).
    """
    if padded_bytes(problem) <= 2 * problem.x_bytes + by_channels.BLOCK:
        return None
    ways: dict[str, Divided] = {
        "by_channels": by_channels,
        "by_groups": by_groups,
        "by_image": by_image,
    }
    divided = (
        name
        for name, way in ways.items()
        if way.applies(problem) and way.of_block(problem)[0] > 1
    )
    return next(divided, "direct")


def _depthwise(problem: ConvProblem) -> str | None:
    """By blocks of images, where channels are copied for features, or the other way."""
    channels, features = problem.channels, problem.features // problem.spec.groups
    if channels == features == 1:
        return None  # which copies nothing
    copied = max(problem.x_bytes, problem.x_bytes * features // channels)
    size = min(copied, max(problem.x_bytes, problem.y_bytes))
    large = _is_large(size) or copied > NEW_PAGES
    return "by_image" if large and by_image.applies(problem) else None


def _phases(problem: ConvProblem) -> str | None:
    """By blocks of images, or of rows, where y is too large to be copied.

    Phases are written before they interleave. Where y alone is large blocks take time:
    input gradients with 2 to 8 channels for each feature and 1 to 6 MB of x 1.1 to 3.3
    times as long as at once, with 29 MB 0.6 times (Intel Xeon). Phases of one tap and
    channel each XLA interleaves as it multiplies: 32 images of 56x56 with 32 channels,
    2x2 with stride 4, 1.3 ms and no memory, in blocks 5.6. Nor are phases of one axis
    copied where none is cut off: 16 taps with stride 3, 32 sequences of 841 points, 32
    channels, 3.8 ms and 0.1 MB, in blocks 9.3 (Intel Xeon). With the channels first XLA
    writes y a second time as well: over 58 random ones phases take 0.80 times as long
    as in blocks of images, 0.55 to 1.21, and as much memory as stock where few are cut
    off (AMD EPYC without AVX-512). 25 of two axes take 0.78 times as long as in blocks
    of rows, but 12 of three axes 1.11, and 25 with groups 0.97 times.
    """
    alone = problem.channels == 1 and problem.features == problem.spec.groups > 1
    copied = not (alone and subpixel.window(problem) == 1)
    if not (copied and _is_large(problem.y_bytes)) or subpixel.is_in_place(problem):
        return None
    moved = _is_moved(problem)
    if moved and len(problem.x_spatial) < 3:
        return None
    single = problem.batch == 1 or by_image.image_bytes(problem) > by_image.BLOCK
    # Rows are cut out of a copy of x with its zeros in place.
    if single and 4 * problem.x_bytes <= problem.y_bytes and by_rows.applies(problem):
        return "by_rows"
    return "by_image" if by_image.applies(problem) and not moved else None


_DIVIDED: dict[str, Callable[[ConvProblem], str | None]] = {
    "depthwise": _depthwise,
    "patches_gradient": _gradient,
    "slices_gradient": _gradient,
    "subpixel": _phases,
}
"""What divides an algorithm into blocks, if it is to be divided."""


def _is_large(size: int) -> bool:
    """Whether so many bytes are more than a block, and half as much again.

    So that a block is not divided again.
    """
    return 2 * size > 3 * by_image.BLOCK


def _is_moved(problem: ConvProblem) -> bool:
    """Whether XLA moves the features of y, which is not too large, without groups."""
    moved = problem.spec.groups == 1 and not problem.spec.features_last
    size = math.prod(problem.output_shape)
    few_cut = subpixel.phase_entries(problem) < CUT * size
    return moved and few_cut and problem.y_bytes <= COPY


def is_whole(problem: ConvProblem, algorithm: str) -> bool:
    """Whether the algorithm is not divided into blocks for its memory."""
    return bounded(problem, Plan(algorithm, "")).algorithm == algorithm
