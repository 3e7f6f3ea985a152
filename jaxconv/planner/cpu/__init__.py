"""Rules for one CPU, by what was measured there; those for a kind of problem in a file.

Where nothing was measured to be better a rule answers nothing. Rules and costs rest on
jax 0.12.0.1, whose fast path is YNNPACK, and were found to hold on 0.10.2, where it is
Eigen. All were measured on two cores; the number of cores is not asked for.
"""

import functools

from jaxconv.algorithms import trim
from jaxconv.planner.choice import Plan, first
from jaxconv.planner.cpu import (
    dense,
    depthwise,
    fourier,
    gradients,
    groups,
    input_dilated,
    larger_windows,
    many_axes,
    memory,
    products,
)
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem

TRIMMED = 0.5
"""The part of all pairs of a tap and an output up to which the others are left out.

Of 2000 random layers 47 roles are trimmed, 1.9 times as fast as the other plans in
geometric mean, 0.7 to 9 times, and with a fraction of the memory where the padding is
much larger than x (AMD EPYC without AVX-512).
"""


def rule(problem: ConvProblem, processor: Processor) -> Plan | None:
    """What meets entries alone, transforms, or the answer of the first rule with one.

    Args:
      problem: what is to be computed, of known sizes.
      processor: whose costs count.
    """
    by_sums = functools.partial(_by_sums, processor=processor)
    found = by_sums(problem)
    if trim.applies(problem) and trim.kept(problem) <= TRIMMED:
        # Exchanged with its window, x without zeros between entries meets none around.
        exchanged = found is not None and found.algorithm == "swap"
        if not (exchanged and problem.spec.is_plain):
            return Plan("trim", "most taps or outputs meet nothing but zeros")
    return fourier.rule(problem, found, processor, by_sums) or found


def _by_sums(problem: ConvProblem, processor: Processor) -> Plan | None:
    """The answer of the first rule that has one, of all but transforms of the whole."""
    plan = functools.partial(rule, processor=processor)
    rules = (
        larger_windows.rule,
        functools.partial(products.dense, processor=processor),
        products.grouped,
        functools.partial(gradients.of_depthwise, processor=processor, plan=plan),
        functools.partial(depthwise.rule, processor=processor),
        functools.partial(groups.members, processor=processor),
        functools.partial(gradients.rule, processor=processor, plan=plan),
        groups.rule,
        functools.partial(input_dilated.rule, processor=processor),
        functools.partial(many_axes.rule, processor=processor),
        functools.partial(dense.rule, processor=processor),
    )
    found = first(rules, problem)
    return found and memory.bounded(problem, found)
