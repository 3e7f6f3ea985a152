"""Windows of so many taps that Fourier transforms take less time than sums."""

import math

from jaxconv.algorithms import by_groups, by_image, by_rows, fourier
from jaxconv.planner.choice import Plan, Rule
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem

WORTH = 0.75
"""How much of the time of sums transforms may take, whose rounding is another one."""

SPLIT = 2
"""How much longer transforms may take by rows, which overlap, to need less memory."""

LONGER = {
    Processor.NARROW: (2.1, 1.9),
    Processor.WIDE: (2.5, 2.25),
    Processor.HALVED: (2.5, 2.25),
    Processor.WIDE_AMD: (1.0, 1.0),
}
"""How much longer than estimated transforms take, and sums but in a plan's own time.

Estimates are an AMD EPYC's with AVX-512. On an Intel Xeon transforms took 2 to 3 times
as long, and sums 1 to 2.5 times. Of 63 roles of random layers that are transformed with
(2.5, 2.25) and not with (2.5, 1.5), 50 are faster, 1.5 times in geometric mean; of 30
whose sums are in their own time, as much nearer to the border, 26 are slower. On an AMD
EPYC without AVX-512 transforms took 2.2 times as long: the choice for 244 roles takes
1.04 times as long as the faster, and 1.19 with (3, 1). For 232 kernel gradients, not
fitted to, 1.05 times as long as the best of all, and 1.06 where only products of
patches were in their own time, 3.6 at most.
"""

SUMS, PEAK, CALL = 10e9, 225e9, 4e-5
"""Products a second for one channel and feature, at most, and seconds of a call.

Between them the rate grows with the cube root of how many pairs there are. Of 200
random layers that have no cost of their own, half take 0.7 to 2 times as long (AMD EPYC
with AVX-512).
"""


def rule(
    problem: ConvProblem,
    found: Plan | None,
    processor: Processor,
    by_sums: Rule,
) -> Plan | None:
    """Fourier transforms, where windows have so many taps that sums take longer.

    Over 500 random layers with large windows or few channels, of all roles, the choice
    takes 1.06 times as long as the better of sums and transforms, and 2.1 times without
    transforms (AMD EPYC with AVX-512). jax 0.10.2 has the same transforms.
    """
    if not fourier.applies(problem) or problem.taps == 1:
        return None
    algorithm, count, one = "fourier", 1, problem
    if by_groups.applies(problem):
        count, one = by_groups.of_block(problem)
        algorithm = "by_groups" if count > 1 else "fourier"
    if by_image.applies(problem) and not _fits(one):
        images, block = by_image.of_block(problem)
        if images > 1:  # else it would be planned by itself once more, without end
            algorithm, count, one = "by_image", images, block
    if count == 1 and not _fits(one) and by_rows.applies(problem):
        rows, part = by_rows.of_block(problem)
        if 1 < rows < SPLIT * fourier.cost(problem) / fourier.cost(part):
            algorithm, count, one = "by_rows", rows, part
    if count == 1 and not _fits(one, at_most=2 * (one.x_bytes + one.kernel_bytes)):
        return None
    slower, sums_slower = LONGER[processor]
    seconds = slower * count * fourier.cost(one)
    sums = None if found is None else found.seconds
    if sums is None:
        # Batch groups XLA:CPU expands, to compute all pairs of them.
        pairs = 1 if found else problem.spec.batch_group_count
        sums = CALL + pairs * _sums(problem)
    if found is None or not found.own_time:
        sums *= sums_slower
    if count > 1 and seconds < WORTH * sums:  # a block may be divided in turn
        inner = rule(one, by_sums(one), processor, by_sums)
        if inner is None or inner.seconds is None:
            return None
        seconds = count * inner.seconds
    if seconds >= WORTH * sums:
        return None
    told = f"{1e3 * seconds:.3g} ms as estimated, and by sums {1e3 * sums:.3g} ms"
    return Plan(algorithm, f"a window of many taps, by transforms {told}", seconds)


def _fits(problem: ConvProblem, at_most: int = 0) -> bool:
    """Whether transforms of a block, and copies of all operands, are of a few MB.

    Or transforms alone of no more than `at_most` bytes, where nothing is to be divided:
    kernel gradients of large images, 21x21 on one of 2048x2048 with 48 MB of them 30
    ms, otherwise 614 ms and 64 MB (AMD EPYC with AVX-512).
    """
    block = max(fourier.group_bytes(problem), fourier.BLOCK)
    copied = problem.x_bytes + problem.kernel_bytes
    return block <= max(3 * fourier.BLOCK - copied, at_most)


def _sums(problem: ConvProblem) -> float:
    """Seconds, roughly, of the sums of any algorithm for which nothing was fitted."""
    pairs = problem.channels * problem.features // problem.spec.groups
    return problem.flops / 2 / min(SUMS * math.cbrt(pairs), PEAK)
