"""What a rule answers: an algorithm, and why it was chosen."""

from typing import NamedTuple


class Plan(NamedTuple):
    """A choice and why it was made.

    Attributes:
      algorithm: a key of `jaxconv.algorithms.ALGORITHMS`.
      reason: one sentence.
    """

    algorithm: str
    reason: str


def cheapest(costs: dict[str, float]) -> Plan:
    """The algorithm of least cost, of which each is given in seconds."""
    algorithm = min(costs, key=lambda name: costs[name])
    told = ", ".join(f"{name} {1e3 * cost:.3g} ms" for name, cost in costs.items())
    return Plan(algorithm, f"least cost as estimated: {told}")
