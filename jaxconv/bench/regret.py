"""How far the plan's choice is from the best algorithm that applies."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxconv.algorithms import ALGORITHMS, compute
from jaxconv.bench.rows import problem_of
from jaxconv.bench.timing import Timing, compare
from jaxconv.cases import ConvCase
from jaxconv.planner import plan
from jaxconv.spec import ConvProblem
from jaxconv.testing import draw

HOPELESS = 5.0
"""An algorithm whose first run takes this many times the fastest's is not run again."""


class Choice(NamedTuple):
    """The algorithms that apply to a layer in one role, and which was chosen.

    Attributes:
      layer: its name.
      role: one of `jaxconv.bench.rows.ROLES`.
      chosen: the plan's algorithm.
      timings: by algorithm.
    """

    layer: str
    role: str
    chosen: str
    timings: dict[str, Timing]

    @property
    def best(self) -> str:
        """The fastest algorithm."""
        return min(self.timings, key=lambda name: self.timings[name].fastest)

    @property
    def regret(self) -> float:
        """Time of the chosen over the time of the best."""
        return self.timings[self.chosen].fastest / self.timings[self.best].fastest


def choose(
    case: ConvCase, role: str, dtype: Any = jnp.float32, **timing: Any
) -> Choice:
    """Time every algorithm that applies to a layer in one role, the best twice.

    Args:
      case: the layer.
      role: one of `jaxconv.bench.rows.ROLES`.
      dtype: of the operands.
      **timing: rounds and seconds, as `jaxconv.bench.timing.compare` takes them.

    Raises:
      ValueError: if `role` is no such.
    """

    def planned(problem: ConvProblem) -> str:
        return plan(problem, jax.default_backend()).algorithm

    problem = problem_of(case, role, dtype)
    chosen = planned(problem)
    names = [chosen, *(name for name in ALGORITHMS if name != chosen)]
    programs = {
        name: partial(compute, problem, name, planned)
        for name in names
        if ALGORITHMS[name].applies(problem)
    }
    x, kernel = draw(0, dtype, problem.x_shape, problem.kernel_shape)
    operands = [jnp.asarray(x), jnp.asarray(kernel)]
    # All of them in few rounds: most are slower than the chosen, which needs no proof.
    once = {**timing, "seconds": 0}
    timings = compare(programs, operands, hopeless=HOPELESS, **once)
    choice, confirmed = Choice(case.name, role, chosen, timings), {chosen}
    while choice.best not in confirmed:
        # The lowest of many figures is low by chance as well: the two once more, alone.
        confirmed.add(choice.best)
        pair = {name: programs[name] for name in (chosen, choice.best)}
        timings |= compare(pair, operands, **timing)
    return choice
