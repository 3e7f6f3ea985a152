"""The convolution as XLA has it: one `lax.conv_general_dilated`.

y[n, f, o] = Σ_{c, t} x̃[n, c, s·o + d·t − p] · k[f, c, t], with nothing rewritten.

Applies to every problem; it is the program that stock JAX emits. Symbolic padding,
which the gradients of convolutions with symbolic sizes have and lax refuses, and
negative padding of symbolic sizes, is laid around x by `lax.pad` beforehand.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.spec import ConvProblem, is_static


def applies(problem: ConvProblem) -> bool:
    """Always."""
    return True


def run(
    problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Callable
) -> jax.Array:
    """Compute `problem` by XLA's own convolution."""
    spec = problem.spec
    padding, lhs_dilation = spec.padding, spec.lhs_dilation
    pads = [pad for pair in padding for pad in pair]
    if not is_static(*pads) or (min(pads, default=0) < 0):  # else `crop` was planned
        edges = [(0, 0, 0)] * x.ndim
        for axis, (low, high), dilation in zip(
            spec.dimension_numbers.lhs_spec[2:], padding, lhs_dilation, strict=True
        ):
            edges[axis] = (low, high, dilation - 1)
        x = lax.pad(x, jnp.zeros((), x.dtype), edges)
        padding, lhs_dilation = ((0, 0),) * len(padding), (1,) * len(padding)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=spec.window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=spec.rhs_dilation,
        dimension_numbers=spec.dimension_numbers,
        feature_group_count=spec.feature_group_count,
        batch_group_count=spec.batch_group_count,
        precision=problem.precision,
        preferred_element_type=problem.preferred_element_type,
        out_sharding=problem.out_sharding,
    )
