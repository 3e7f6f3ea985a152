"""Groups of several channels, of a layer or made by `vmap`."""

from jaxconv.algorithms import (
    by_member,
    by_tap,
    depthwise,
    direct,
    patches,
    per_group,
    pointwise_groups,
    stencil,
)
from jaxconv.algorithms.protocol import Costed
from jaxconv.planner.choice import Plan, cheapest
from jaxconv.planner.cpu.depthwise import SMALL
from jaxconv.planner.cpu.products import FULL
from jaxconv.planner.cpu.routines import NEARLY
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem

MEMBERS_SLOWER = 2.25
"""How much longer XLA's own convolution of members' groups takes on narrow vectors.

2.2 to 2.8 times for nine kernel gradients of 8 to 1024 single examples, each of which
was 1.2 to 3.5 times as fast member by member (AMD EPYC without AVX-512).
"""

PAIRS = 8
"""Channels times features of a group up to which terms may be summed entry by entry.

For more of them the cost of that was not fitted: 16 and 4 in 16 groups, 7x7, take 1.2
ms, and 0.5 group by group (AMD EPYC with AVX-512).
"""

_OF_GROUPS: dict[str, Costed] = {
    "depthwise": depthwise,
    "patches": patches,
    "per_group": per_group,
    "stencil": stencil,
}
"""Algorithms for feature groups of several taps, all of which have a cost."""


def rule(problem: ConvProblem) -> Plan | None:
    """Feature groups of an undilated input."""
    spec = problem.spec
    if spec.feature_group_count == 1 or spec.is_input_dilated:
        return None
    wide = problem.channels <= SMALL and problem.features >= FULL * spec.groups
    if pointwise_groups.applies(problem) and not wide:
        # Over 236 random layers 1.3 times as fast as by the costs, and 2 as stock; few
        # channels and 32 to 240 features 1.4 times slower than stock.
        return Plan("pointwise_groups", "products of all groups")
    costs = {"direct": NEARLY * direct.grouped_cost(problem)}
    pairs = problem.channels * problem.features
    few = problem.channels == 1 or pairs <= PAIRS * spec.groups
    for name, algorithm in _OF_GROUPS.items():
        if algorithm.applies(problem) and (few or algorithm is not depthwise):
            costs[name] = algorithm.cost(problem)
    return cheapest(costs)


def members(problem: ConvProblem, processor: Processor) -> Plan | None:
    """Groups that vmap has made: an ensemble's, or gradients of single examples.

    Over 90 random ensembles of layers that are not depthwise, their gradients among
    them, 1.7 times as fast as the best by groups in geometric mean, and 3.6 at most.
    """
    if not by_member.applies(problem):
        return None
    one = by_member.single(problem)
    if max(one.channels, one.spec.groups) > 1 or not 1 < one.outputs < one.taps:
        return Plan("by_member", "one member after the other, as vmap found them")
    slower = MEMBERS_SLOWER if processor is Processor.NARROW else 1.0
    costs = {
        "direct": NEARLY * slower * direct.grouped_cost(problem),
        "by_member": by_member.gradients_cost(problem, processor),
    }
    return cheapest(costs)._replace(own_time=True)


def partitioned(problem: ConvProblem) -> Plan | None:
    """What XLA divides over devices, along any axis, with no more communication.

    Phases would interleave along a sharded axis of features, which XLA gathers for it.
    A kernel gradient's window is as large as an image, and the images, which it sums
    over, may be spread: each of its points would be a sum over devices.
    """
    several = max(problem.channels, problem.features // problem.spec.groups) > 1
    if by_tap.applies(problem) and several and problem.taps <= problem.outputs:
        return Plan("by_tap", "XLA gathers the images of groups, but not for products")
    return None
