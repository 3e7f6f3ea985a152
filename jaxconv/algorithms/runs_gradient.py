"""A depthwise kernel gradient with the channels first, summed along runs of positions.

With c for the images of the layer, g for its channels, m features for each, t for the
positions of the cotangent and o for the layer's taps,

    y[o, (g, m)] = Σ_{c, t} x̃[g, c, s·o + d·t − p] · k[(g, m), c, t].

With s·o − p = d·a(o) + b(o), 0 ≤ b(o) < d, along each axis, what is read in steps of d
stands together in a phase x_b[q] = x[d·q + b]. Where the lines of a phase and of k have
one length, their positions are rows in which an offset is a number: a(o) is one, and t
is r·U + u, with u within a run of U positions, of whole lines,

    a[g, m, o, u] += x_b(o)[g, c, r·U + u + a(o)] · k[(g, m), c, r·U + u],
    y[o, (g, m)] = Σ_u a[g, m, o, u],   for u + a(o) within the line of u.

a is updated by a few terms (c, r) at a time. Runs fill the vector units however few
channels there are, and x and k are read in the order in which they stand.

Applies to depthwise kernel gradients of undilated inputs whose last axes are spatial
ones. Costs a read and a write of a for every eight terms, and a copy of some images at
a time, which stays in the cache. Measured on 2 cores of an AMD EPYC without AVX-512,
jax 0.12.0.1, float32, 8 images, ms by `depthwise_gradient` and so: 144 channels, 3x3 at
56 9.0 and 5.7; 512, 5 taps at 1024 11 to 25 and 4.9; 48, three features each, 2x2x2 at
32x16x16 57 and 11.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms import depthwise_gradient
from jaxconv.algorithms.axes import Axis, axes_of, coordinates, linear, unravel
from jaxconv.algorithms.blocks import (
    block,
    blocks_of,
    cut,
    divisor,
    loop,
    masked,
    only,
    put,
    zeros,
)
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import runs
from jaxconv.spec import ConvProblem

RUN, SUMS, TERMS = 128, 1 << 17, 8
"""Positions of a run, at least, entries of a, and terms that each gets at a time."""

IMAGES, MOST = 2 << 20, 4 << 20
"""Bytes of images whose phases are copied at a time, and of a, at most."""


def applies(problem: ConvProblem) -> bool:
    """A depthwise kernel gradient, of an undilated input with the channels first."""
    if not depthwise_gradient.applies(problem) or problem.spec.is_input_dilated:
        return False
    x_axes, kernel_axes, _ = problem.spec.dimension_numbers
    first = all(max(own[:2]) < min(own[2:]) for own in (x_axes, kernel_axes))
    sums = problem.features * problem.outputs * _rows(problem).size
    return first and sums * problem.sum_dtype.itemsize <= MOST


def cost(problem: ConvProblem) -> float:
    """Seconds, about: products, reads and writes of a, copies of x and of k.

    Fitted to 394 random kernel gradients of 1 to 1024 channels, 1 to 64 features each
    and one to three axes on 2 cores of an AMD EPYC without AVX-512, jax 0.12.0.1,
    float32, in the time of `depthwise_gradient.cost`. Of 244 with up to 3 features for
    each channel the choice of the two takes 1.04 times as long as the faster one.
    """
    axes, rows = axes_of(problem), _rows(problem)
    runs_of_a = problem.features * problem.outputs
    sums, terms = runs_of_a * rows.size, problem.channels * rows.runs
    steps = problem.channels // rows.images
    blocks = -(-rows.images * rows.runs // TERMS) * steps
    seconds = 6.5e-6 * (steps + 1) + 6.8e-11 * terms * sums
    # As if the start and the sum along the runs took three blocks' time.
    seconds += (blocks + 3) * (2.5e-9 * runs_of_a + 4.5e-11 * sums)
    phases = len(np.unique(_reads(axes)[0], axis=0))
    every_step = math.prod(problem.spec.rhs_dilation)
    entry = 2.9e-10
    if every_step > 1:
        entry = 5.8e-10 + 2.2e-9 / _length(axes[-1])
    seconds += entry * math.prod(problem.x_shape) * phases / every_step
    if _is_copied(problem, rows):
        seconds += 2.6e-10 * math.prod(problem.kernel_shape)
    return seconds


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Add up the terms of some images at a time, then along the runs."""
    spec, axes, sums = problem.spec, axes_of(problem), problem.sum_dtype
    batch, channel, *spatial = spec.dimension_numbers.lhs_spec
    feature, in_feature, *taps = spec.dimension_numbers.rhs_spec
    x = x.transpose(channel, batch, *spatial)  # [C, G, *I]
    kernel = kernel.transpose(in_feature, feature, *taps)  # [C, (G, m), *K]
    G, F = x.shape[1], problem.features
    of_feature = (np.arange(F, dtype=np.int32) * G // F)[:, None]
    rows = _rows(problem)
    steps, offsets = _reads(axes)
    phases, phase_of = np.unique(steps, axis=0, return_inverse=True)
    places = (phase_of.reshape(-1) * rows.images).astype(np.int32)
    flat = linear(list(offsets.T), rows.line)
    width, size = rows.width, rows.size
    before, after = (max(-(-int(n) // width), 0) for n in (-flat.min(), flat.max()))
    starts = (before * width + flat).astype(np.int32)
    lines = rows.lines * rows.runs
    most = max(lines + after, _length(axes[0]))
    is_copied = _is_copied(problem, rows)
    terms = rows.images * rows.runs
    count, part = blocks_of(terms, TERMS)

    def of_images(step: jax.Array, carry: tuple) -> tuple:
        """The sums with the terms of some images, whose rows are written anew."""
        x_rows, k_rows, a = carry
        start = step * rows.images
        images = cut(x, {0: (start, rows.images)})
        for place, phase in enumerate(phases.tolist()):
            of_phase = (
                slice(b, None, axis.rhs_dilation)
                for b, axis in zip(phase, axes, strict=True)
            )
            entries = images[(slice(None), slice(None), *of_phase)]
            x_rows = put(
                x_rows, entries, {0: np.int32(place * rows.images), 2: np.int32(before)}
            )
        if is_copied:
            k_rows = put(k_rows, cut(kernel, {0: (start, rows.images)}), {})
            start = 0
        x_rows, k_rows = lax.optimization_barrier((x_rows, k_rows))
        X_rows = x_rows.reshape(*x_rows.shape[:2], -1)
        K_rows = (k_rows if is_copied else kernel).reshape(-1, F, lines * width)

        def add(index: jax.Array, a: jax.Array) -> jax.Array:
            begin, _, new = block(index, count, part, terms)
            for i in range(part):
                image, r = unravel(begin + i, (rows.images, rows.runs))
                where = (places + image, of_feature, starts + r * size)
                X = runs(X_rows, jnp.broadcast_arrays(*where), size).astype(sums)
                k = cut(K_rows, {0: (start + image, 1), 2: (r * size, size)})
                k = k.reshape(-1, 1, size).astype(sums)
                a = a + only(None if new is None else new[i], X * k)
            return a

        return x_rows, k_rows, loop(count, add, a, routine=False)

    P = len(phases) * rows.images
    carry = (
        zeros((P, G, before + most, *rows.line), x.dtype, x),
        zeros((rows.images, F, lines, *rows.line), x.dtype, x) if is_copied else None,
        zeros((F, len(flat), size), sums, x),
    )
    *_, a = loop(len(x) // rows.images, of_images, carry, routine=False)
    # Else what a single block adds up is written first, for XLA's sum to add it up.
    a = lax.optimization_barrier(a)
    y = masked(_there(axes, rows, steps, offsets)[None], a).sum(-1, dtype=sums)
    y = y.astype(problem.output_dtype).reshape(F, *problem.output_spatial)
    return spec.laid_out(jnp.moveaxis(y, 0, -1)[None])


class _Rows(NamedTuple):
    """How positions stand in rows, and how many are taken at a time.

    Attributes:
      line: lengths along all axes but the first, of a phase and of k.
      lines: how many of these are a run.
      runs: how many cover k.
      images: how many are copied at a time.
    """

    line: tuple[int, ...]
    lines: int
    runs: int
    images: int

    @property
    def width(self) -> int:
        """Positions of a line."""
        return math.prod(self.line)

    @property
    def size(self) -> int:
        """U, the positions of a run."""
        return self.lines * self.width


def _rows(problem: ConvProblem) -> _Rows:
    """Runs of whole lines, of one size where they can be, and images, a part of all."""
    first, *others = axes_of(problem)
    line = tuple(max(_length(a), a.taps) for a in others)
    run = max(RUN, SUMS // (problem.features * problem.outputs))
    most = -(-run // math.prod(line))
    # What they cover beyond k has to be copied with k: rather runs of twice the size.
    blocks = (blocks_of(first.taps, lines) for lines in (most, 2 * most))
    runs, lines = min(blocks, key=math.prod)
    entries = problem.spec.batch_group_count * math.prod(problem.x_spatial)
    images = max(IMAGES // (entries * problem.dtype.itemsize), 1)
    return _Rows(line, lines, runs, divisor(problem.channels, images))


def _length(axis: Axis) -> int:
    """Entries of the longest phase."""
    return -(-axis.size // axis.rhs_dilation)


def _is_copied(problem: ConvProblem, rows: _Rows) -> bool:
    """Whether lines of k are shorter than those of x, or fewer than those of runs."""
    return (rows.lines * rows.runs, *rows.line) != problem.kernel_spatial


def _reads(axes: Sequence[Axis]) -> tuple[np.ndarray, np.ndarray]:
    """b(o) and a(o) of each of the layer's taps o, [o, axis]."""
    taps = coordinates(axes, "outputs")
    first = [a.stride * o - a.low for a, o in zip(axes, taps, strict=True)]
    offsets, steps = np.divmod(np.stack(first, -1), [a.rhs_dilation for a in axes])
    return steps, offsets


def _there(
    axes: Sequence[Axis], rows: _Rows, steps: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Which positions u of a run read an entry of their own line, [o, u]."""
    there = np.ones((len(steps), rows.size), bool)
    positions = unravel(np.arange(rows.size), (rows.lines, *rows.line))
    for i, axis in enumerate(axes[1:], 1):
        q = positions[i] + offsets[:, i, None]
        size = -(-(axis.size - steps[:, i, None]) // axis.rhs_dilation)
        there &= (q >= 0) & (q < size) & (positions[i] < axis.taps)
    return there
