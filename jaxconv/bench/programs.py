"""Any program: as it is, against the same program accelerated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxconv.bench.rows import Row
from jaxconv.bench.timing import compare
from jaxconv.explanation import explain
from jaxconv.transform import accelerate


def measure_program(
    name: str,
    role: str,
    program: Callable,
    arguments: tuple[Any, ...],
    *,
    rounds: int = 9,
    judged: Callable[[Any], Any] = lambda result: result,
) -> Row:
    """Time a program, stock and accelerated in turn.

    Args:
      name: of the program.
      role: what it computes.
      program: a function of arrays whose convolutions are lax's.
      arguments: for it.
      rounds: runs of each, at least.
      judged: takes what is to be compared out of the result.

    Returns:
      A row whose FLOPs and bytes are those of the convolutions, and whose error is the
      largest difference of what is judged over its largest entry, half a unit in the
      last place at least.
    """
    results: dict[str, Any] = {}

    def keep(name: str, result: Any) -> None:
        results[name] = jax.tree.leaves(judged(result))

    programs = {"stock": program, "jaxconv": accelerate(program)}
    timings = compare(programs, arguments, rounds=rounds, judge=keep)
    largest = max(float(jnp.abs(leaf).max()) for leaf in results["stock"]) or 1.0
    differences = [
        float(jnp.abs(stock - own).max()) / largest
        for stock, own in zip(results["stock"], results["jaxconv"], strict=True)
    ]
    # Of NumPy, for which a NaN is the largest.
    error = float(np.max([jnp.finfo(jnp.float32).eps / 2, *differences]))
    convolutions = explain(program, *arguments).convolutions
    return Row(
        name,
        role,
        timings["stock"],
        timings["jaxconv"],
        sum(conv.times * conv.flops for conv in convolutions),
        sum(conv.times * conv.bytes for conv in convolutions),
        error,
    )
