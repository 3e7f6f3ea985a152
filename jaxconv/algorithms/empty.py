"""A convolution over nothing: a sum of no terms is zero.

y[n, f, o] = Σ_{c, t} x̃[n, c, s·o + d·t − p] · k[f, c, t] = 0 where x, k or y has no
entries at all.

Applies where some size is 0. XLA refuses windows without taps, and need not be asked.
"""

import jax
import jax.numpy as jnp

from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem


def applies(problem: ConvProblem) -> bool:
    """All sizes are known, and one of them is 0."""
    return problem.is_static and 0 in (
        *problem.x_shape,
        *problem.kernel_shape,
        *problem.output_shape,
    )


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Zeros of the result's shape and dtype."""
    return jnp.zeros(problem.output_shape, problem.output_dtype)
