"""Windows of more taps than the input has entries, where it is no kernel gradient."""

import math

from jaxconv.algorithms import swap
from jaxconv.planner.choice import LARGER, Plan
from jaxconv.processor import LANES
from jaxconv.spec import ConvProblem


def rule(problem: ConvProblem) -> Plan | None:
    """A window of more taps than the input has entries, which it exchanges.

    Outputs are more than the entries, too: else it is a kernel gradient.
    """
    entries, taps = math.prod(problem.x_spatial), problem.taps
    positions = entries * math.prod(problem.spec.lhs_dilation)
    fills = problem.batch >= LANES and problem.channels > 1
    larger = taps > positions if fills else taps >= LARGER * positions
    if swap.applies(problem) and larger and entries < problem.outputs:
        return Plan(
            "swap", "the window is larger than the input: the two change places"
        )
    return None
