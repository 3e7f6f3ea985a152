"""Taps and outputs that meet nothing but zeros, left out.

Along an axis x̃ has its E entries, zeros between these included, at 0 ≤ j < E. An output
o and a tap t meet at j = s·o + d·t − p. So of K taps and O outputs only

    ⌈(p − s·(O − 1)) / d⌉ ≤ t ≤ ⌊(p + E − 1) / d⌋,
    ⌈(p − d·(K − 1)) / s⌉ ≤ o ≤ ⌊(p + E − 1) / s⌋

can meet an entry. The other taps need not be read, and the other outputs are zero. With
t₀ and o₀ for the first of these, t = t₀ + t' and o = o₀ + o',

    j = s·o' + d·t' − p',   p' = p − s·o₀ − d·t₀,

is a convolution of fewer taps, outputs and zeros. So is a layer whose dilation exceeds
its input, as in a stack of growing dilations: of three taps one is left, and the kernel
gradient is zero for the others.

Applies where some tap or output meets zeros alone. Costs a slice of the kernel and a
copy of y with its zeros. No infinity in a tap that is left out makes the result NaN.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.algorithms.axes import Axis, axes_of
from jaxconv.algorithms.padding import edges_at
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import every
from jaxconv.spec import ConvProblem


def applies(problem: ConvProblem) -> bool:
    """Some tap or output, of known sizes and not explicitly sharded, meets zeros."""
    return problem.is_static and problem.out_sharding is None and kept(problem) < 1


def kept(problem: ConvProblem) -> float:
    """The part of all pairs of a tap and an output that is left."""
    pairs, left = 1, 1
    for axis in axes_of(problem):
        pairs *= axis.taps * axis.outputs
        left *= len(_taps(axis)) * len(_outputs(axis))
    return left / pairs if pairs else 1.0


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Convolve with the taps that meet entries, for the outputs that do."""
    spec, axes = problem.spec, axes_of(problem)
    taps, outputs = list(map(_taps, axes)), list(map(_outputs, axes))
    if not all(map(len, (*taps, *outputs))):
        return jnp.zeros(problem.output_shape, problem.output_dtype)
    starts, counts = [left.start for left in taps], list(map(len, taps))
    places = spec.dimension_numbers.rhs_spec[2:]
    kernel = every(kernel, places, starts, counts, [1] * len(taps))
    trimmed = map(_padding, axes, taps, outputs)
    y = conv(spec.replace(padding=tuple(trimmed)), x, kernel)
    around = [
        (left.start, axis.outputs - left.stop, 0)
        for axis, left in zip(axes, outputs, strict=True)
    ]
    edges = edges_at(spec.dimension_numbers.out_spec[2:], around, y.ndim)
    return lax.pad(y, jnp.zeros((), y.dtype), edges)


def _taps(axis: Axis) -> range:
    """The taps that can meet an entry."""
    return _meeting(axis, axis.rhs_dilation, axis.taps, axis.stride, axis.outputs)


def _outputs(axis: Axis) -> range:
    """The outputs that can meet an entry."""
    return _meeting(axis, axis.stride, axis.outputs, axis.rhs_dilation, axis.taps)


def _meeting(axis: Axis, step: int, count: int, others: int, number: int) -> range:
    """Which of so many, in such steps, meet an entry with one of the others."""
    first = -((others * (number - 1) - axis.low) // step)
    last = (axis.low + axis.spread_size - 1) // step
    start = min(max(first, 0), count)
    return range(start, max(min(last + 1, count), start))


def _padding(axis: Axis, taps: range, outputs: range) -> tuple[int, int]:
    """(p', high), with which the outputs that are left are all."""
    low = axis.low - axis.stride * outputs.start - axis.rhs_dilation * taps.start
    return low, axis._replace(taps=len(taps), outputs=len(outputs), low=low).high
