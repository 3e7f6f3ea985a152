"""How far the plan's choice is from the best algorithm that applies."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxconv import calculus
from jaxconv.algorithms import ALGORITHMS, compute
from jaxconv.arguments import Caller, conv_spec
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
      role: one of `jaxconv.bench.measure.ROLES`.
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


def problem_of(case: ConvCase, role: str, dtype: Any) -> ConvProblem:
    """The convolution that a layer's role is.

    Args:
      case: the layer.
      role: one of `jaxconv.bench.measure.ROLES`.
      dtype: of the operands.
    """
    x, kernel, dtype = case.x_shape, case.kernel_shape, jnp.dtype(dtype)
    spec = conv_spec(Caller("bench"), x, kernel, **case.geometry)
    y = spec.output_shape(x, kernel)
    if role == "forward":
        return ConvProblem(spec, x, kernel, dtype)
    if role == "kernel_gradient":
        return ConvProblem(calculus.kernel_gradient(spec, x, kernel, y), x, y, dtype)
    turned = jax.eval_shape(
        lambda k: calculus.transposed_kernel(
            spec.dimension_numbers.rhs_spec, spec.groups, k
        ),
        jax.ShapeDtypeStruct(kernel, dtype),
    )
    gradient = calculus.input_gradient(spec, x, kernel, y)
    return ConvProblem(gradient, y, turned.shape, dtype)


def choose(
    case: ConvCase, role: str, dtype: Any = jnp.float32, **timing: Any
) -> Choice:
    """Time every algorithm that applies to a layer in one role, the best twice.

    Args:
      case: the layer.
      role: one of `jaxconv.bench.measure.ROLES`.
      dtype: of the operands.
      **timing: rounds and seconds, as `jaxconv.bench.timing.compare` takes them.
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
