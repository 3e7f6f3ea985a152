"""An input-dilated convolution as an undilated one whose features are the phases of y.

Per axis, with input dilation L, window stride s, kernel dilation d and low padding p,
tap t of output o reads x[i] where

    L·i = s·o + d·t − p;                                                          (1)

the other taps meet the zeros between the entries of x. Going from o to o + P, with
P = L / gcd(s, L), moves s·o by a multiple of L, so that the same taps meet entries
again, S = s·P / L entries further on. Write o = P·q + r − h with phase r < P: each
phase is an undilated convolution over q with stride S, whose taps are those that solve
(1). All phases together are one convolution, with P times the features:

    y[n, f, P·q + r − h] = z[n, (r, f), q]
                         = Σ_{c, w} x[n, c, S·q + δ·w + b] · k'[(r, f), c, w]

where b is the first entry that any tap of q = 0 reads, δ the greatest common step
between the entries read, and k'[(r, f), c, w] = k[f, c, t] for the t that solves (1)
with i = δ·w + b and o = r − h, or 0 if none does. Interleaving the phases gives y. The
shift h < P decides which phases stand side by side, and so how far apart the entries
are that they read: it is chosen so that k' has the fewest taps. This is the sub-pixel
convolution of Shi et al., arXiv:1609.05158, for any stride and dilation.

Applies where all sizes are known and an axis has L > 1. With kernel = stride each phase
has one tap and nothing is wasted; in general a phase has at most ⌈K / L⌉ taps, and k'
pads the others with zeros up to that. Costs a gather of the kernel and the interleaving
of y; saves the multiplications by inserted zeros, (L − 1)/L of them per axis. XLA:CPU
runs input dilation as nested loops save for ungrouped 1-D and 2-D: the input gradient
of a ViT patch embedding (16×16, stride 16, 8 images of 224) took 621 ms by XLA, and
takes 17 by phases.
"""

import functools
import math
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms import direct, empty
from jaxconv.algorithms.axes import Axis, axes_of
from jaxconv.algorithms.order import transposed
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem, in_order


class Phases(NamedTuple):
    """One axis of the undilated convolution.

    Attributes:
      taps: t for each (phase r, window position w), or K where there is none.
      repeats: Q, how many times each phase occurs in y.
      stride: S.
      dilation: δ.
      padding: (low, high) of x, so that there are Q windows.
      shift: h, how many outputs that there are not stand before the first.
    """

    taps: np.ndarray
    repeats: int
    stride: int
    dilation: int
    padding: tuple[int, int]
    shift: int

    @property
    def outputs(self) -> int:
        """Outputs of all phases, those that are cut off as well."""
        return self.repeats * len(self.taps)


@functools.lru_cache(maxsize=4096)  # costs and bounds ask for the same ones
def phases(
    size: int,
    taps: int,
    outputs: int,
    stride: int,
    low: int,
    lhs_dilation: int,
    rhs_dilation: int,
) -> Phases | None:
    """The phases from the shift of fewest taps; None if no tap ever meets an entry.

    Phases whose taps meet the same entries need narrow windows; which phases stand
    together depends on where the first begins.
    """
    axis = Axis(size, taps, outputs, stride, low, lhs_dilation, rhs_dilation)
    period = min(axis.period, outputs)
    # A period that is cut short at `outputs` cannot occur twice.
    shifts = range(period) if period == axis.period else range(1)
    met = _met(axis, range(1 - len(shifts), period))
    if not met:
        return None
    o = np.array(list(met))
    firsts, lasts = np.array([(i[0], i[-1]) for _, i in met.values()]).T
    # The entries that one output reads are evenly spaced, alike for all of them.
    step = max(int(i[1] - i[0]) if len(i) > 1 else 0 for _, i in met.values())

    def entries(shift: int) -> tuple[int, int, int]:
        """The first entry that a period reads, how many steps of δ to the last, δ."""
        own = slice(*np.searchsorted(o, (-shift, period - shift)))
        first, last = int(firsts[own].min()), int(lasts[own].max())
        dilation = math.gcd(step, int(np.gcd.reduce(firsts[own] - first))) or 1
        return first, (last - first) // dilation, dilation

    def repeats(shift: int) -> int:
        return -(-(outputs + shift) // period)

    def cost(shift: int) -> tuple[int, int]:
        return (1 + entries(shift)[1]) * repeats(shift), shift

    shift = min(shifts, key=cost)
    first, steps, dilation = entries(shift)
    table = np.full((period, 1 + steps), taps)
    for r in range(period):
        if r - shift in met:
            t, i = met[r - shift]
            table[r, (i - first) // dilation] = t
    count = repeats(shift)
    # A period cut short at `outputs` has Q = 1, where any stride will do.
    window_stride = stride * period // lhs_dilation if count > 1 else 1
    of_phases = Axis(size, 1 + steps, count, window_stride, -first, 1, dilation)
    padding = of_phases.low, of_phases.high
    return Phases(table, count, window_stride, dilation, padding, shift)


def _met(axis: Axis, o: range) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Solve equation (1): the taps of each output that meet entries, and which these.

    Outputs before the first are such as a shift puts there.
    """
    common = math.gcd(axis.rhs_dilation, axis.lhs_dilation)
    # d·t ≡ p − s·o (mod L) has solutions t if gcd(d, L) divides the right side: every
    # (L / gcd)-th tap from the first.
    every = axis.lhs_dilation // common
    inverse = pow(axis.rhs_dilation // common, -1, every)
    met = {}
    for output in o:
        right = axis.low - axis.stride * output
        t = np.arange(right // common * inverse % every, axis.taps, every)
        if right % common == 0 and t.size:
            met[output] = t, (axis.rhs_dilation * t - right) // axis.lhs_dilation
    return met


def applies(problem: ConvProblem) -> bool:
    """The input is dilated, all sizes are known, and there is something to sum."""
    return (
        problem.is_static
        and problem.spec.is_input_dilated
        and not empty.applies(problem)
    )


def _solved(problem: ConvProblem) -> list[Phases | None]:
    """The phases of each spatial axis."""
    return [phases(*axis) for axis in axes_of(problem)]


def weights(problem: ConvProblem) -> int:
    """Entries of k'."""
    taps = math.prod(0 if axis is None else axis.taps.size for axis in _solved(problem))
    return taps * problem.channels * problem.features


def window(problem: ConvProblem) -> int:
    """Taps of a window of k'."""
    axes = (axis for axis in _solved(problem) if axis is not None)
    return math.prod(axis.taps.shape[1] for axis in axes)


def phase_entries(problem: ConvProblem) -> int:
    """Entries of z, those that are cut off as well."""
    axes = (axis for axis in _solved(problem) if axis is not None)
    outputs = math.prod(axis.outputs for axis in axes)
    return problem.batch * outputs * problem.features


def is_in_place(problem: ConvProblem) -> bool:
    """Whether z is y as it lies: phases of the last axis alone, of which none is cut.

    Those of the last axis stand beside the features, in the order of y's axes.
    """
    spec, axes = problem.spec, [axis for axis in _solved(problem) if axis is not None]
    y_axes = in_order(len(problem.x_spatial)).out_spec
    ordered = spec.dimension_numbers.out_spec == y_axes
    last = all(len(axis.taps) == 1 for axis in axes[:-1])
    whole = tuple(axis.outputs for axis in axes) == problem.output_spatial
    return spec.groups == 1 and ordered and last and whole


def cost(problem: ConvProblem) -> float:
    """Seconds, about: products, the arrays, k', and what is transposed.

    Fitted, like XLA's `direct.scatter_cost`, to 616 input gradients and transposed
    layers of one and two axes on 2 cores of an AMD EPYC with AVX-512, jax 0.12.0.1,
    float32, over which the cheaper of the two takes 1.06 times as long as the faster.
    Phases that are not interleaved are not written twice: over 256 random input
    gradients of one axis the choice takes 1.04 times as long as the best (Intel Xeon).
    """
    outputs = math.prod(problem.output_shape)
    products = 2.2e-12 * flops(problem)
    each = 2e-10 if outputs <= direct.CACHED else 4e-10
    written = 0.0 if is_in_place(problem) else each * outputs
    moved = 1.5e-10 * math.prod(problem.x_shape) + 2.1e-10 * transposed(problem)
    return 1.9e-5 + products + written + 6.5e-10 * weights(problem) + moved


def flops(problem: ConvProblem) -> int:
    """Multiplications and additions, those with zeros that fill up the windows too."""
    return 2 * math.prod(problem.output_shape) * problem.channels * window(problem)


def depthwise_cost(problem: ConvProblem) -> float:
    """Seconds, about, of groups of few channels: products, and a copy of x per phase.

    Fitted to 170 random input gradients of depthwise layers of one to three axes with
    strides of 2 to 4, on 2 cores of an Intel Xeon with AVX-512, jax 0.12.0.1, float32,
    in the scale of `depthwise.cost`, which is less than half of its time there: the
    cheaper of the two takes 1.05 times as long as the faster.
    """
    axes = (axis for axis in _solved(problem) if axis is not None)
    copies = math.prod(problem.x_shape) * math.prod(len(axis.taps) for axis in axes)
    products = math.prod(problem.output_shape) * problem.channels * window(problem)
    return 2.5e-5 + 8e-11 * products + 3.5e-11 * copies


def _places(problem: ConvProblem, axes: Sequence[Phases]) -> np.ndarray:
    """Linear index of t for each (*w, *r), or the number of taps if there is none."""
    rank, linear, there = len(axes), np.zeros((), np.int32), np.bool_(True)
    for i, (axis, K) in enumerate(zip(axes, problem.kernel_spatial, strict=True)):
        windows, period = axis.taps.T.shape
        shape = [1] * (2 * rank)
        shape[i], shape[rank + i] = windows, period
        t = axis.taps.T.reshape(shape)
        linear, there = linear * K + t, there & (t < K)
    return np.where(there, linear, problem.taps).astype(np.int32)


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Compute the phases of `problem` as features, then interleave them."""
    spec = problem.spec
    solved = _solved(problem)
    axes = [axis for axis in solved if axis is not None]
    if len(axes) < len(solved):  # an axis on which every tap meets inserted zeros
        return jnp.zeros(problem.output_shape, problem.output_dtype)
    rank, groups = len(axes), spec.groups
    features = problem.features
    counts = [axis.repeats for axis in axes]
    periods, windows = zip(*(axis.taps.shape for axis in axes), strict=True)

    kernel = spec.filters(kernel)
    kernel = kernel.reshape(-1, kernel.shape[-2], groups, features // groups)
    kernel = jnp.pad(kernel, ((0, 1), *[(0, 0)] * 3))  # the tap that there is not
    # To [*w, C, G, *r, F/G], all axes at once, so that k' is written only once.
    kernel = lax.gather(
        kernel,
        _places(problem, axes)[..., None],
        lax.GatherDimensionNumbers((rank, rank + 1, 2 * rank + 2), (0,), (0,)),
        (1, *kernel.shape[1:]),
        mode="promise_in_bounds",
    )
    kernel = kernel.reshape(*windows, kernel.shape[rank], -1)

    z = conv(
        spec.replace(
            window_strides=tuple(axis.stride for axis in axes),
            padding=tuple(axis.padding for axis in axes),
            lhs_dilation=(1,) * rank,
            rhs_dilation=tuple(axis.dilation for axis in axes),
            dimension_numbers=in_order(rank)._replace(
                lhs_spec=spec.dimension_numbers.lhs_spec
            ),
        ),
        x,
        kernel,
    )  # [N, *Q, (G, *r, F/G)]
    batch = z.shape[0]
    # The phases of the last axis stand beside the features where there are no groups:
    # moved together, they are longer runs to copy. A 4x4 layer with stride 4 and 3
    # channels: 5.3 ms one by one, 2.1 ms together (AMD EPYC).
    tail = [features // groups] if groups > 1 else [periods[-1] * features]
    moved = rank if groups > 1 else rank - 1
    z = z.reshape(batch, *counts, groups, *periods[:moved], *tail)
    order = [(1 + i, 2 + rank + i) if i < moved else (1 + i,) for i in range(rank)]
    z = z.transpose(0, *chain(*order), 1 + rank, 2 + rank + moved)
    z = z.reshape(batch, *(axis.outputs for axis in axes), features)
    starts = [0, *(axis.shift for axis in axes), 0]
    kept = (batch, *problem.output_spatial, features)
    stops = [start + size for start, size in zip(starts, kept, strict=True)]
    z = lax.slice(z, starts, stops)
    return spec.laid_out(z)
