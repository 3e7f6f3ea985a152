"""A convolution of few channels as a stencil: sums of shifted images, each one row.

With c = (g, c'), f = (g, f') and d·t = s·a(t) + b(t), 0 ≤ b(t) < s, along each axis,

    y[n, (g, f'), o] = Σ_{c', t} x_b(t)[n, (g, c'), o + a(t)] · k[(g, f'), c', t],
    x_b[n, c, q] = x̃[n, c, s·q + b − p].

What is read with steps of one stands together in a phase x_b. With the channels first,
all positions q of a phase are one row, and those that the outputs read for a tap are a
run of it, whatever the number of axes: one loop over the entries of y adds up numbers
times runs, which fill the vector units however few channels, features or positions
along an axis there are. Channels are taken a few at a time, so that the code does not
grow with their number.

Applies to few taps over an undilated input. Costs a copy of x with its zeros in place,
and one of y: a run does not stop at the end of an axis, but goes on through the zeros
that stand there. Measured on 2 cores of an AMD EPYC with AVX-512, jax 0.12.0.1,
float32, stock's ms and ours: 3x3 in 32 groups of 8 on 8 images of 28x28 12.5 and 4.0,
and 6.4 by patches or group by group; with the channels first 13 and 2.8; 3 channels to
3 at 112 1.8 and 0.5; 1 to 1, 7x7 at 128 1.6 and 0.18; 1 to 8, 3x3x3 at 32 13 and 0.3.
"""

import math
import operator
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms.axes import Axis, axes_of, countable, unravel
from jaxconv.algorithms.blocks import (
    added_up,
    block,
    blocks_of,
    cut,
    divisor,
    loop,
    put,
    zeros,
)
from jaxconv.algorithms.order import written
from jaxconv.algorithms.padding import spread
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import every
from jaxconv.processor import LANES
from jaxconv.spec import ConvProblem, ConvSpec

TERMS, TAPS = 24, 64
"""Terms that are added up at a time, more where one channel has more; its most taps.

8 channels of 3x3 taps: 3.5 ms with 9 to 24 terms, 3.9 with 36, 4.7 with all 72.
"""

BLOCK = 4 << 20
"""Bytes of the copies of x and y that are kept at a time, of images or groups of one.

8 images of 56x56 with 128 channels take 6.2 ms in such parts, and 13 ms at once, in new
pages.
"""


def applies(problem: ConvProblem) -> bool:
    """No batch groups, an undilated input, a few taps, and not too many positions."""
    if problem.spec.batch_group_count > 1 or not countable(problem):
        return False
    few = 1 < problem.taps <= TAPS
    undilated = not problem.spec.is_input_dilated
    return few and undilated and _group_bytes(problem) <= BLOCK


def cost(problem: ConvProblem) -> float:
    """Seconds, about: products, what of x and of y is copied, a block's programs.

    Fitted to 687 random layers of 2 to 64 groups, of 1 to 64 channels and features
    each, with 1 to 3 axes and both orders of them, on 2 cores of an AMD EPYC with
    AVX-512, jax 0.12.0.1, float32. Over these and 306 others of groups of few channels
    the choice takes 1.08 times as long as the best, and over 313 layers without groups,
    to which this was not fitted, 1.11 times; without stencils it took 1.6 times.
    """
    axes, spec = axes_of(problem), problem.spec
    outputs, taps = math.prod(problem.output_shape), problem.taps
    row = -(-_run_length(axes) // LANES) * LANES
    products = problem.batch * problem.features * row * taps * problem.channels
    size = _at_a_time(problem)
    entries = problem.batch * spec.groups * _phase_entries(problem)
    read, written = _channels_first(spec)
    seconds = products * (1.5e-11 if size * taps <= 40 else 2e-11)
    if not read or spec.is_strided:
        seconds += 5e-10 * entries
    if size < problem.channels:
        seconds += 1.5e-10 * entries
    seconds += (1e-10 if written else 2e-10) * outputs
    seconds += 0.6e-9 * outputs / axes[-1].outputs
    (count, _), groups = _blocks(problem)
    return 4e-5 * count * (spec.groups // groups) + seconds


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Add up runs, block by block, in the order of the axes of x and y."""
    spec = problem.spec
    batch, channel, *spatial = spec.dimension_numbers.lhs_spec
    feature, in_feature, *taps = spec.dimension_numbers.rhs_spec
    channel_first, feature_first = _channels_first(spec)
    order = (channel, *spatial) if channel_first else (*spatial, channel)
    x = x.transpose(batch, *order)
    kernel = kernel.transpose(in_feature, *taps, feature).astype(problem.sum_dtype)
    kernel = kernel.reshape(-1, spec.groups, problem.features // spec.groups)

    def of(images: jax.Array, weights: jax.Array) -> jax.Array:
        y = _features_first(problem, images, weights, channel_first)
        return y if feature_first else written(jnp.moveaxis(y, 1, -1))

    (count, size), groups = _blocks(problem)
    parts = spec.groups // groups
    channel_axis, feature_axis = (
        1 if first else -1 for first in (channel_first, feature_first)
    )

    def write(step: jax.Array, y: jax.Array) -> jax.Array:
        index, part = unravel(step, (count, parts))
        start, *_ = block(index, count, size, len(x))
        group, own = part * groups, groups * problem.channels
        channels = group * problem.channels
        images = cut(x, {0: (start, size), channel_axis: (channels, own)})
        weights = cut(kernel, {1: (group, groups)})
        features = group * (problem.features // spec.groups)
        return put(y, of(images, weights), {0: start, feature_axis: features})

    if count * parts == 1:
        y = of(x, kernel)
    else:
        sizes = list(problem.output_spatial)
        sizes.insert(0 if feature_first else len(sizes), problem.features)
        y = zeros((len(x), *sizes), problem.output_dtype, x)
        y = loop(count * parts, write, y, routine=False)
    return spec.laid_out(jnp.moveaxis(y, 1, -1) if feature_first else y)


def _channels_first(spec: ConvSpec) -> tuple[bool, bool]:
    """Whether the channels of x, and of y, stand before a spatial axis."""
    x_axes, _, y_axes = spec.dimension_numbers
    return x_axes[1] < max(x_axes[2:]), y_axes[1] < max(y_axes[2:])


def _features_first(
    problem: ConvProblem, x: jax.Array, kernel: jax.Array, channel_first: bool
) -> jax.Array:
    """y, [n, F, *O], of [n, C, *I] or [n, *I, C] and [(c, *K), G, F/G]."""
    axes, sums, (_, groups, f) = axes_of(problem), problem.sum_dtype, kernel.shape
    counts, steps = _counts(axes), _steps(axes)
    length = _run_length(axes)
    taps = [_read(axes, steps, tap) for tap in np.ndindex(*problem.kernel_spatial)]
    phases = _phases(axes, x, {phase for phase, _ in taps}, channel_first)
    rows = lax.optimization_barrier(
        {
            phase: row.reshape(len(x), groups, -1, math.prod(counts))
            for phase, row in phases.items()
        }
    )
    size = _at_a_time(problem)
    each, shape = size * len(taps), (len(x), groups, f, length)

    def add(index: jax.Array, y: jax.Array | None) -> jax.Array:
        # Reads that depend on the index do not use the vector units.
        own, numbers = lax.optimization_barrier(
            (
                {
                    phase: cut(row, {2: (index * size, size)})
                    for phase, row in rows.items()
                },
                cut(kernel, {0: (index * each, each)}),
            )
        )
        terms = []
        for c in range(size):
            for phase, start in taps:
                run = every(own[phase], [2, 3], [c, start], [1, length], [1, 1])
                run = lax.broadcast_in_dim(run.astype(sums), shape, range(4))
                number = every(numbers, [0], [len(terms)], [1], [1])
                number = lax.broadcast_in_dim(number, shape, range(3))
                terms.append(lax.mul(run, number))
        total = added_up(terms)
        return total if y is None else y + total

    if size == problem.channels:
        y = add(jnp.int32(0), None)
    else:
        passes = problem.channels // size
        y = loop(passes, add, zeros(shape, sums, x), routine=False)
    y = y.astype(problem.output_dtype).reshape(len(x), -1, length)
    y = lax.optimization_barrier(y)
    y = spread(y, [(0, 0, 0), (0, 0, 0), (0, axes[0].outputs * steps[0] - length, 0)])
    y = y.reshape(*y.shape[:2], axes[0].outputs, *counts[1:])
    return lax.slice(y, [0] * y.ndim, [*y.shape[:2], *problem.output_spatial])


def _counts(axes: Sequence[Axis]) -> list[int]:
    """Positions of a phase: the outputs', and as many as the last tap is shifted by."""
    return [
        axis.outputs + axis.rhs_dilation * (axis.taps - 1) // axis.stride
        for axis in axes
    ]


def _steps(axes: Sequence[Axis]) -> list[int]:
    """From one position along an axis to the next, in a row of all positions."""
    counts = _counts(axes)
    return [math.prod(counts[i + 1 :]) for i in range(len(axes))]


def _run_length(axes: Sequence[Axis]) -> int:
    """From the first output to the last, in a row of all positions."""
    steps = _steps(axes)
    return 1 + sum((a.outputs - 1) * step for a, step in zip(axes, steps, strict=True))


def _read(
    axes: Sequence[Axis], steps: Sequence[int], tap: Sequence[int]
) -> tuple[tuple[int, ...], int]:
    """The phase b that the outputs read for the tap, and where in its row a starts."""
    offsets = [axis.rhs_dilation * t for axis, t in zip(axes, tap, strict=True)]
    phase = tuple(n % axis.stride for n, axis in zip(offsets, axes, strict=True))
    shifts = [n // axis.stride for n, axis in zip(offsets, axes, strict=True)]
    return phase, sum(map(operator.mul, shifts, steps))


def _phases(
    axes: Sequence[Axis], x: jax.Array, which: Iterable, channel_first: bool
) -> dict[tuple[int, ...], jax.Array]:
    """x_b for each such b, [n, C, positions], of [n, C, *I] or [n, *I, C]."""
    none = (0, 0, 0)
    edges = [
        (axis.low, axis.stride * count - axis.size - axis.low, 0)
        for axis, count in zip(axes, _counts(axes), strict=True)
    ]
    if channel_first:
        # Reads that are fused with the padding have a branch for each entry.
        x = lax.optimization_barrier(spread(x, [none, none, *edges]))
    else:
        # Reads that depend on the block are slower when they are fused with the rest.
        x = spread(lax.optimization_barrier(x), [none, *edges, none])

    def row(phase: tuple[int, ...]) -> jax.Array:
        steps = [slice(b, None, a.stride) for b, a in zip(phase, axes, strict=True)]
        if channel_first:
            part = x[(slice(None), slice(None), *steps)]
            return part.reshape(*part.shape[:2], -1)
        part = x[(slice(None), *steps)]
        part = part.reshape(len(part), -1, part.shape[-1])
        # Fused with the steps or the padding, it is transposed entry by entry.
        return lax.optimization_barrier(part).swapaxes(1, 2)

    return {phase: row(phase) for phase in which}


def _at_a_time(problem: ConvProblem) -> int:
    """Channels whose terms are added up at a time."""
    most = max(TERMS // problem.taps, 1)
    return divisor(problem.channels, most)


def _phase_entries(problem: ConvProblem) -> int:
    """Entries of the phases of a group of an image."""
    axes = axes_of(problem)
    phases = math.prod(min(axis.stride, axis.taps) for axis in axes)
    return problem.channels * phases * math.prod(_counts(axes))


def _group_bytes(problem: ConvProblem) -> int:
    """Bytes of the copy of a group of an image, those that are not read too, and y."""
    axes = axes_of(problem)
    kept = problem.channels * math.prod(axis.stride for axis in axes)
    kept += problem.features // problem.spec.groups
    return kept * math.prod(_counts(axes)) * problem.sum_dtype.itemsize


def _blocks(problem: ConvProblem) -> tuple[tuple[int, int], int]:
    """(number, size) of the blocks of images, and how many groups are taken of each."""
    groups, most = problem.spec.groups, max(BLOCK // _group_bytes(problem), 1)
    images = blocks_of(problem.batch, max(most // groups, 1))
    return images, divisor(groups, most)
