"""Three axes and more, and dtypes that XLA:CPU computes by nested loops."""

import math

import jax.numpy as jnp

from jaxconv.algorithms import fold_depth, overlap_slices, patches, stencil
from jaxconv.planner.choice import Plan, cheapest
from jaxconv.planner.cpu.dense import RANGE, is_within, reads_once
from jaxconv.planner.cpu.input_dilated import added_up
from jaxconv.planner.cpu.routines import has_routine
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem

PAIRS_3D = 96
"""Channels times features up to which a stencil is faster where there is no routine.

Of 67 random layers with three axes it was the fastest of all in 41; where `overlap_add`
does not apply in 27 of the 36 with so few pairs, up to 30 times as fast as without
(AMD EPYC with AVX-512).
"""

STENCILS = {Processor.NARROW: 0.8}
"""How much of its time beside products a stencil takes, where products take longer.

Over 116 random layers of 1 to 16 channels or features the choice takes 1.09 times as
long as the best, and 1.12 without it (AMD EPYC without AVX-512).
"""

SHORT = 64
"""Terms up to which patches of layers with three axes are few enough to copy.

Of 44 random strided ones, four had up to two channels and 3x3x3 taps: 1.3 to 2.2 times
as fast as slice by slice, 1.2 to 1.5 times as by a stencil. With more channels either
may be faster. Over 45 random ones of many more features than channels the choice takes
1.08 times as long as the best, and 1.26 where patches are not asked for (AMD EPYC with
AVX-512). On narrow vectors they are asked for with any number of terms: over 433 random
layers of 4 to 1024 channels the choice takes 1.06 times as long as the best, and 1.14
without. On all processors they are with many weights and few outputs, for which their
cost was fitted: they take the kernel as it lies, of which slices would need a copy.
"""

WIDENED = 16
"""Features over channels from which on it is cheaper to copy x than to add up slices.

Of 50 random layers with three axes, seven were so wide, and took 1.5 times as long by
`overlap_slices` as by the fastest, 3 to 256 at 14x7x7 0.47 and 0.28 ms by patches. Over
all of them the choice takes 1.08 times as long as the best, without it 1.30 and at most
31 times (AMD EPYC with AVX-512).
"""

SLICE = 128
"""Points of a slice from which on it is worth a convolution of its own.

Stride-2 3x3x3 with slices of 81 points: 5.6 ms slice by slice, 4.0 by patches; with
slices of 1024 points 11 and 24.
"""


def rule(problem: ConvProblem, processor: Processor) -> Plan | None:
    """What XLA:CPU computes by nested loops: other dtypes, many spatial axes."""
    if problem.spec.is_input_dilated:
        return None
    rank = len(problem.x_spatial)
    loops = not has_routine(problem) or rank > 3
    if loops and not jnp.issubdtype(problem.dtype, jnp.inexact):
        return None
    if loops or rank == 3:
        if reads_once(problem) and patches.applies(problem):
            return Plan("patches", "windows that do not overlap are copied as they lie")
        costs = added_up(problem)
        few = problem.channels * problem.features <= PAIRS_3D
        if few and stencil.applies(problem):
            faster = STENCILS.get(processor, 1.0)
            costs["stencil"] = faster * stencil.cost(problem)
        terms = problem.channels * problem.taps
        strided = not loops and problem.spec.is_strided
        wide = problem.features >= WIDENED * problem.channels
        short = terms <= SHORT and (strided or (wide and costs))
        measured = processor is Processor.NARROW or is_within(problem, *RANGE)
        if (short or (measured and not loops)) and patches.applies(problem):
            costs["patches"] = patches.dense_cost(problem, processor)
        if not (loops or wide) and overlap_slices.applies(problem):
            costs["overlap_slices"] = overlap_slices.cost(problem)
        if costs:
            return cheapest(costs)
    if loops:
        known = patches.applies(problem)
        return Plan("patches", "XLA:CPU has no routine for it") if known else None
    if rank < 3 or not fold_depth.applies(problem):
        return None
    if problem.taps == 1 or math.prod(problem.output_spatial[1:]) < SLICE:
        return Plan("patches", "slices too small to convolve one by one")
    return Plan("fold_depth", "XLA:CPU has a fast path for two spatial axes")
