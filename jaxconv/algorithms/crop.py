"""Negative padding as a slice: crop x, then convolve without negative padding.

Low padding −a drops the first a positions of the dilated input x̃ (x with L − 1 zeros
between neighbours, so that x[i] stands at position L·i). What is left is

    x̄[j] = x̃[j + a],  j ≥ 0.

Those positions hold m = ⌈a/L⌉ entries of x. Dropping these, the first entry left stands
at L·m, which the crop leaves L·m − a ≥ 0 positions from the edge: slice m entries off
and pad by L·m − a. The same holds at the high end.

Applies where some padding is negative. Costs one slice. XLA:CPU reads out of bounds on
some negative paddings (openxla/xla#48713: with jax 0.10.2, an input of shape
(1, 15, 6, 8), a 1×1 kernel and padding ((0, 0), (−5, 1)) are off by 6.0), and gradients
of over-padded convolutions have them, so no convolution is emitted with one.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem, is_static


def applies(problem: ConvProblem) -> bool:
    """Some axis, of known size, has negative padding."""
    return any(
        is_static(size, *pads) and min(pads) < 0
        for size, pads in zip(problem.x_spatial, problem.spec.padding, strict=True)
    )


def slice_cost(problem: ConvProblem) -> float:
    """Seconds, about, of the slice, besides the convolution; 0 where it needs none.

    The kernel gradient of a strided layer of 6.3 million entries of x takes stock 6.7
    ms, and 9.5 cropped (Intel Xeon); of kernel gradients x is the largest operand.
    """
    return 5e-10 * math.prod(problem.x_shape) if applies(problem) else 0.0


def _cropped(pad: int, dilation: int) -> tuple[int, int]:
    """Entries to slice off, and the padding left, for padding of either sign."""
    entries = -(min(pad, 0) // dilation)  # ⌈a / L⌉
    return entries, pad + entries * dilation


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Compute `problem` on the entries of x that its padding leaves."""
    spec = problem.spec
    starts, stops, padding = [0] * x.ndim, list(x.shape), []
    for axis, (low, high), dilation in zip(
        spec.dimension_numbers.lhs_spec[2:],
        spec.padding,
        spec.lhs_dilation,
        strict=True,
    ):
        if not is_static(x.shape[axis], low, high):
            padding.append((low, high))
            continue
        starts[axis], low = _cropped(low, dilation)
        dropped, high = _cropped(high, dilation)
        stops[axis] -= dropped
        if starts[axis] >= stops[axis]:  # every output is a sum of no terms
            return jnp.zeros(problem.output_shape, problem.output_dtype)
        padding.append((low, high))
    # What XLA fuses with the slice it reads entry by entry: kernel gradients of strided
    # 1-D layers, whose axes it moves, took 3.4 instead of 2.2 ms.
    x = lax.optimization_barrier(lax.slice(x, starts, stops))
    return conv(spec.replace(padding=tuple(padding)), x, kernel)
