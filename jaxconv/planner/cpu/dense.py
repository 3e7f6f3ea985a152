"""Layers without groups, of one or two axes."""

import math

from jaxconv.algorithms import (
    direct,
    overlap_add,
    overlap_slices,
    pad,
    patches,
    stencil,
)
from jaxconv.planner.choice import Plan, cheapest
from jaxconv.planner.cpu.depthwise import SMALL
from jaxconv.planner.cpu.input_dilated import added_up
from jaxconv.planner.cpu.routines import NEARLY, has_routine, is_complex, is_fast
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem, dilated

PAIRS_DENSE = 256
"""Channels times features up to which a stencil of more than a few may be the faster.

Of 92 random layers of one or two axes it was so for 20, all of which have at most four
channels or so few pairs; with more, it was thought to be in four and took 1.6 to 3.7
times as long (AMD EPYC with AVX-512).
"""

PADDED = 0.8
"""Time of layers of one channel with the zeros laid around it, over that without.

0.71 to 0.9 by features over 100 random ones: lenet's first 5x5 0.66 and 0.42 ms. With
more channels, or taps that are dilated, it is 1 (AMD EPYC with AVX-512). The choice for
170 layers of one channel takes 1.07 times as long as the best.
"""

SUMMED = 16
"""Channels from which on taps of the first axis may be features, in two axes.

XLA's routine is slow for few features, and where the kernel is larger than a cache: 12
of 64 channels and 4x4 taps, the input gradient of a 7x7 layer with stride 2, take 46 ms
by it and 23 so. Of 299 random layers of 8 to 360 channels and up to 63 features 31 are
estimated to be faster so: they are 1.6 times as fast in geometric mean, 0.84 at least,
but for some of `LONG` rows. Strides leave too little to add up (AMD EPYC without
AVX-512).
"""

LONG, SEVERAL, COLUMNS, LARGE = 48, 3, 32, 25_000
"""Outputs of a row, and features, from which on XLA's routine is as fast on narrow
vectors, if the product of slices has fewer columns, and the kernel fewer entries, than
these.

64 channels to 3, 7x7 taps at 64x64: 8.5 ms by it, 11 by slices, 19 by transforms; 74 to
4 at 112x112 6.4 and 9.9. At 14 to 32 four others are 1.2 to 1.6 times as fast by
slices, and one feature of 109 channels at 112x112 3 times (AMD EPYC without AVX-512).
"""

COPIED = 1.15
"""What a product has to be faster by that needs a copy of the kernel in memory, or of
windows that overlap.

It is one more loop to compile, in 70 ms where XLA's routine takes 7: 14x14 with 256
channels takes 4.0 instead of 4.4 ms by it, and 7 MB. The phases of a transposed 4x4
layer with stride 2 take 6.9 ms and two loops by patches, 5.4 by XLA's routine.
"""

SUMS_SLOWER = {Processor.HALVED: 1.25}
"""How much longer sums of slices take beside XLA's own routine than they are estimated,
where weights are not many.

Of 1175 random layers and input gradients 57 take longer than XLA's by more than 5 % so,
and 121 without it; all are 1.096 and 1.093 times as fast as stock. Such losses are
small, but whole steps consist of them: residual blocks of 16 and 32 channels took 1.07
times as long as stock's. XLA's orders many weights first: the input gradient of 3x3 at
7x7 with 512 channels is 1.7 times as fast by sums, and with the factor 1.5 times.
"""

MANY_WEIGHTS = 300_000
"""Entries of a kernel that take XLA's routine long to order."""

RANGE, NARROW_RANGE = (MANY_WEIGHTS, 800), (60_000, 3000)
"""Entries of a kernel from which on, and outputs up to which, patches are asked for:
what their cost was fitted to, and where it was found to hold on narrow vectors.

Over 347 random layers of one and two axes in the latter the choice takes 1.08 times as
long as the best, and in the former alone 1.11 times; of 93 of more outputs patches are
the fastest for 16. A ViT's 16x16 windows take 19.8 and by XLA 28.7 ms, 2x2 with stride
2 at 14x14, 384 to 768, 8.7 and 17.8 (AMD EPYC without AVX-512).
"""


def rule(problem: ConvProblem, processor: Processor) -> Plan | None:
    """Windows over an undilated input, without groups, in one or two dimensions.

    XLA's own routine reads each entry for every tap, and orders the kernel first: with
    many weights and few outputs, and in input gradients, other products are faster.
    """
    spec, many = problem.spec, math.prod(problem.kernel_shape) >= MANY_WEIGHTS
    if spec.groups > 1 or spec.is_input_dilated:
        return None
    known = has_routine(problem) and not is_complex(problem.dtype)
    if problem.is_kernel_gradient or not known:
        return None
    costs = added_up(problem)
    if "overlap_add" in costs and not overlap_add.as_it_lies(problem):
        costs["overlap_add"] *= COPIED
    if not costs and _is_summed(problem):
        if processor is Processor.NARROW and _is_long(problem):
            return Plan("direct", "XLA is as fast for few features and long rows")
        costs["overlap_slices"] = overlap_slices.cost(problem)
    slower = 1.0 if many else SUMS_SLOWER.get(processor, 1.0)
    costs = {name: slower * seconds for name, seconds in costs.items()}
    pairs = problem.channels * problem.features
    few = problem.channels <= SMALL or pairs <= PAIRS_DENSE
    if few and stencil.applies(problem):
        costs["stencil"] = stencil.cost(problem) / NEARLY
    range_of_patches = NARROW_RANGE if processor is Processor.NARROW else RANGE
    if is_within(problem, *range_of_patches) and patches.applies(problem):
        costs["patches"] = patches.dense_cost(problem, processor)
        if not (is_within(problem, *RANGE) or reads_once(problem)):
            costs["patches"] *= COPIED
    own = NEARLY * direct.dense_cost(problem)
    alone = problem.channels == 1 and not spec.is_kernel_dilated
    if alone and pad.applies(problem):
        costs["pad"] = PADDED * own
    return cheapest({"direct": own, **costs})


def is_within(problem: ConvProblem, weights: int, outputs: int) -> bool:
    """Whether the kernel has so many entries or more, and y so many outputs or less."""
    few = problem.batch * problem.outputs <= outputs
    return few and math.prod(problem.kernel_shape) >= weights


def reads_once(problem: ConvProblem) -> bool:
    """Whether windows do not overlap, so that all patches are no larger than x."""
    spec = problem.spec
    return all(
        stride >= dilated(taps, dilation)
        for stride, taps, dilation in zip(
            spec.window_strides, problem.kernel_spatial, spec.rhs_dilation, strict=True
        )
    )


def _is_summed(problem: ConvProblem) -> bool:
    """Whether slices that are added up may be faster than XLA's own routine."""
    unstrided = not problem.spec.is_strided
    summed = is_fast(problem.dtype) and problem.channels >= SUMMED
    return unstrided and summed and overlap_slices.applies(problem)


def _is_long(problem: ConvProblem) -> bool:
    """Whether rows are long, features few but several, and weights in a cache."""
    columns = problem.kernel_spatial[0] * problem.features
    few = columns < COLUMNS and math.prod(problem.kernel_shape) < LARGE
    return few and problem.features >= SEVERAL and problem.output_spatial[-1] >= LONG
