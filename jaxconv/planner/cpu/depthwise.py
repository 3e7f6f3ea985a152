"""Groups too small for matrix products: depthwise layers and their input gradients."""

import math

from jaxconv.algorithms import by_image, depthwise, shifts, stencil, subpixel
from jaxconv.planner.choice import Plan, cheapest, is_in_a_row
from jaxconv.planner.cpu.memory import is_whole
from jaxconv.processor import LANES, Processor
from jaxconv.spec import ConvProblem

SMALL = 4
"""Features of a small group.

With 8 groups, 64 taps and 2 features each, 10.4 ms entry by entry and 6.4 ms by stock.
Kernel gradients with 8 groups of one channel 26 and 12 ms.
"""

FEW = 8
"""Groups of one channel below which vectors along them are mostly empty.

16 images of 56x75 with 3 channels: 0.8 ms entry by entry along the channels, 0.12 by
shifts along an axis; with 8 of them 0.40 and 0.45 (AMD EPYC with AVX-512).
"""

WEIGHTS = 8
"""Entries of a group's kernel up to which channels are summed entry by entry.

Of 130 random layers with several channels in each group, this was 0.4 to 40 times as
fast as the best of the others with up to 8 such entries, 1.8 in geometric mean, and
half as fast with 9 to 64 of them; with one feature in each group, 1.5 to 100 times as
fast up to 64 (AMD EPYC with AVX-512).
"""

SQUARE = 16
"""Channels times features of a group up to which channels are copied for features.

While a copy stays in the cache: 4 and 4 in 32 groups at 32x32, 3x3 1.1 ms and by
patches 1.9 to 3.1, 2 and 2 0.4 and 2.8 (AMD EPYC with AVX-512).
"""

IN_BLOCKS = 2.5
"""How much longer phases take block by block of images or rows.

Over 42 random input gradients of 6 to 30 MB the choice takes 1.03 times as long as the
best, and 1.49 with 1 (Intel Xeon).
"""

MASKED, CHANNELS = 48, 96
"""Taps from which on, and channels up to which, images are padded block by block on
processors that prefer it, where all of them are too large a copy.

To ask for each tap whether there is an entry takes as long for one channel as for many.
Over 31 random layers of the kind 1.35 times as fast as all images at once, 1.0 to 2.4;
over 22 of 144 to 384 channels 1.06 times, over 37 of fewer taps 0.82 (AMD EPYC without
AVX-512). On one of the fourth generation, over 30 others, 1.14 times.
"""


def rule(problem: ConvProblem, processor: Processor) -> Plan | None:
    """Groups too small for matrix products.

    20 to 170 times as fast as stock's, forward and input gradient, on every depthwise
    layer of the zoo (AMD EPYC of the fifth generation).
    """
    spec, G = problem.spec, problem.spec.groups
    if G == 1 or problem.features > SMALL * G:
        return None
    in_a_row = is_in_a_row(problem)
    if shifts.applies(problem) and (in_a_row or G < FEW):
        reason = "one channel per group, added up along a spatial axis"
        return Plan("shifts", reason, shifts.cost(problem))
    taps = problem.taps
    weights = taps * problem.channels * problem.features // G
    alone = problem.channels * problem.features == G
    few_taps = taps <= 2 * LANES
    fills = G >= LANES or alone or few_taps
    undilated = not spec.is_input_dilated
    single = problem.features == G and weights <= depthwise.TERMS
    copied = math.prod(problem.x_spatial) * problem.batch * problem.features
    in_cache = weights <= SQUARE * taps and 4 * copied <= by_image.BLOCK
    in_cache &= problem.channels * taps <= depthwise.TERMS
    small = problem.channels == 1 or weights <= WEIGHTS or single or in_cache
    if not (depthwise.applies(problem) and small and fills):
        return None
    if not undilated:
        return None if in_a_row else _of_zeros(problem)
    if stencil.applies(problem) and not shifts.applies(problem):
        costs = {
            "depthwise": depthwise.cost(problem),
            "stencil": stencil.cost(problem),
        }
        return cheapest(costs)
    seconds = depthwise.cost(problem)
    if processor.prefers_blocks and _is_padded_in_blocks(problem):
        reason = "many taps, for which zeros are laid around some images at a time"
        return Plan("by_image", reason, seconds)
    return Plan("depthwise", "few channels per group, summed tap by tap", seconds)


def _is_padded_in_blocks(problem: ConvProblem) -> bool:
    """Whether some images are padded, which are too large together, and are to be."""
    many = problem.taps >= MASKED
    if not many or problem.spec.groups > CHANNELS:
        return False
    count, one = by_image.of_block(problem)
    return count > 1 and depthwise.is_padded(one) and not depthwise.is_padded(problem)


def _of_zeros(problem: ConvProblem) -> Plan | None:
    """Of an input with zeros between its entries: read as such, or by phases.

    Phases multiply by few of the zeros, but interleave. The input gradient of a 3x3
    layer with stride 2 took 137 ms by stock, 15 by phases and 0.95 with three quarters
    of the terms zero; 7x7 with 24 channels at 112x56 0.10 by phases and 0.31. With the
    channels first phases were the faster ones in 29 of 39 random layers, 2.1 times in
    geometric mean (AMD EPYC with AVX-512). Over 190 random input gradients the choice
    takes 1.05 times as long as the faster, 1.23 with a bound on the taps (Intel Xeon).
    """
    if not subpixel.applies(problem):
        return None
    blocks = 1.0 if is_whole(problem, "subpixel") else IN_BLOCKS
    costs = {
        "depthwise": depthwise.cost(problem),
        "subpixel": blocks * subpixel.depthwise_cost(problem),
    }
    return cheapest(costs)
