"""What a rule answers, and what the rules of all platforms ask."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from jaxconv.spec import ConvProblem

LARGER = 4
"""How many times as many taps as positions of x a kernel has that is swapped with it.

It is with any more taps than positions where the images, which become features, fill
vectors, and channels are added up. Over 120 random layers of the kind 2.5 times as fast
as the best of the others in geometric mean, 150 times at most, 0.6 at least (AMD EPYC
with AVX-512).
"""


class Plan(NamedTuple):
    """A choice and why it was made.

    Attributes:
      algorithm: a key of `jaxconv.algorithms.ALGORITHMS`.
      reason: one sentence.
      seconds: the estimate that it was chosen by; None where there was none.
      own_time: whether these are the processor's own seconds. Else they are those of an
        AMD EPYC with AVX-512, in which costs of layers are compared on all of them.
    """

    algorithm: str
    reason: str
    seconds: float | None = None
    own_time: bool = False


Rule = Callable[[ConvProblem], Plan | None]
"""A plan of a problem, or nothing where it knows of nothing better."""


def first(rules: Iterable[Rule], problem: ConvProblem) -> Plan | None:
    """The answer of the first rule that has one."""
    answers = (rule(problem) for rule in rules)
    return next((found for found in answers if found is not None), None)


def cheapest(costs: dict[str, float]) -> Plan:
    """The algorithm of least cost, of which each is given in seconds."""
    algorithm = min(costs, key=lambda name: costs[name])
    told = ", ".join(f"{name} {1e3 * cost:.3g} ms" for name, cost in costs.items())
    return Plan(algorithm, f"least cost as estimated: {told}", costs[algorithm])


def is_in_a_row(problem: ConvProblem) -> bool:
    """Whether x has a spatial axis last, as it has with the channels first."""
    x_axes = problem.spec.dimension_numbers.lhs_spec
    return max(x_axes[2:], default=0) == len(x_axes) - 1
