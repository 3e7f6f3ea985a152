"""A convolution of few outputs and many terms, as products of patches by blocks.

Kernel gradients are of this kind: their window is as large as the layer's output, their
outputs are the layer's taps. With q = (c, t) for a channel and a tap of the window,

    y[n, f, o] = Σ_q X[q, (o, n)] · k[f, q],  X[(c, t), (o, n)] = x̃[n, c, s·o + d·t − p]

is a matrix product. For the kernel gradient of a layer, q counts the outputs of all
images, o the taps and n the channels: X is the patches of the input, k the cotangent.
X is written block by block of q, so that it stays in the cache, and the products of the
blocks are added up. Batch groups split n and f, and are taken one after the other.

x̃ is laid out once, with its zeros. An entry s·o + d·t − p then stands where q alone and
o alone say, as the sum of two numbers: it is read without asking whether it is there.

Applies to convolutions without feature groups. Costs a copy of x, a write and a read of
X in the cache, and a read and a write of y for each block. Measured on 2 cores of an
AMD EPYC with AVX-512, jax 0.12.0.1, float32, stock's ms and ours: 1x1 stride 2 at 56
20.6 and 4.4, 3x3 dilation 2 18.2 and 13.1, 3x3 stride 2 9.0 and 6.5, 3x3x3 64 and 10.6,
2x2x2 stride 2 7.9 and 0.7; 3x3 at 56 with 64 channels 7.0 and 8.5.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxconv.algorithms.axes import Axis, axes_of, coordinates, countable, unravel
from jaxconv.algorithms.blocks import (
    Index,
    block,
    blocks_of,
    cut,
    divisor,
    only,
    stacked,
    summed,
)
from jaxconv.algorithms.order import written
from jaxconv.algorithms.padding import padded, padded_bytes
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import runs
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem

PATCHES = 4 << 20
"""Bytes of X that are written at a time."""

CHAIN = 8192
"""Terms that a product may add up: rounding grows with the root of their number.

Sums of 11760 terms in one product were 8 times as wrong as stock's.
"""

SUM, PARTS, COLUMNS = 512, 8, 64
"""Terms of a product that are a sum of their own, at least; how many such sums; and
columns of both matrices from which on there are several.

XLA's product adds up some 1000 terms in a row. In groups of 512 at least rounding is a
half of that, and two cores share the work better: kernel gradients of a pointwise layer
in groups 30 instead of 38 ms, of 2x2x2 taps with stride 2 13 and 14.5 (AMD EPYC without
AVX-512). With 256 terms, or 8 and 72 columns, they take 1.2 to 1.6 times as long.
"""

FEW, VECTOR = 8, 8
"""Entries that are too few to be copied one window and tap at a time; of a vector.

A 7x7 layer with stride 2 of 3 channels takes 57 ms one window and tap at a time, and 35
ms with rows of 24 entries for 7 taps (AMD EPYC).
"""

WIDE = 256
"""Columns of the larger matrix from which on it is worth to transpose the smaller.

Products whose first factor has its contracted axis last are up to 1.7 times as fast:
64 x 896 times 896 x 576 386 instead of 245 GFLOP/s (AMD EPYC with AVX-512). Of the
kernel gradient of a 7x7 layer with stride 2 (168 columns) the transposition took 13 %.
With the larger one first, 1024 x 4000 times 4000 x 8 takes 5.0 ms instead of 0.2.
"""


def applies(problem: ConvProblem) -> bool:
    """No feature groups, and sizes that can be counted, with the zeros in place."""
    if problem.spec.feature_group_count > 1 or not countable(problem):
        return False
    return padded_bytes(problem) < 2**31


class Rates(NamedTuple):
    """Seconds that a processor needs, about.

    Attributes:
      start: of a program.
      read: per window and tap, or row of them, of X.
      entry: per entry of X.
      alone: per entry of X where the product is a vector.
      move: per entry that is transposed beforehand.
      product: per addition and multiplication.
      weight: per entry of k.
      sum: per entry of y, for each block.
    """

    start: float
    read: float
    entry: float
    alone: float
    move: float
    product: float
    weight: float
    sum: float


_XEON = Rates(
    start=3.1e-5,
    read=2.4e-9,
    entry=0.47e-9,
    alone=0.37e-9,
    move=0.6e-9,
    product=6.1e-12,
    weight=0.35e-9,
    sum=0.61e-9,
)
RATES = {
    Processor.NARROW: Rates(
        start=4.1e-5,
        read=0.93e-9,
        entry=0.45e-9,
        alone=0.52e-9,
        move=0.94e-9,
        product=9e-12,
        weight=0.48e-9,
        sum=0.78e-9,
    ),
    Processor.WIDE: _XEON,
    Processor.HALVED: _XEON,
    Processor.WIDE_AMD: Rates(
        start=2.1e-5,
        read=0.44e-9,
        entry=0.3e-9,
        alone=0.3e-9,
        move=0.23e-9,
        product=2.1e-12,
        weight=0.57e-9,
        sum=0.4e-9,
    ),
}
"""Measured on 2 cores each, jax 0.12.0.1.

Fitted to 397, 508 and 660 dense layers in float32, of 1 to 1024 channels and features,
7 to 4096 points and 1 to 64 images; the last before runs were copied by vectors, by
which the algorithm is 1.1 to 1.6 times as fast. The Xeon's rates are those of an AMD
EPYC of the fourth generation too: over 840 random kernel gradients on it the choice
takes 1.06 times as long as the best, with rates fitted to them 1.07 times, and with
those of the fifth generation 1.11 times.
"""


def cost(problem: ConvProblem, processor: Processor) -> float:
    """Seconds, about: reads and entries of X, transpositions, products, sums."""
    rates, G = RATES[processor], problem.spec.batch_group_count
    terms = problem.channels * problem.taps
    outputs, row = problem.outputs, problem.batch // G
    if _is_sliced(problem):
        outputs, row = outputs // problem.output_spatial[-1], _row(problem)
    f, width = problem.features // G, outputs * row
    count, _ = _blocks(terms, width, f, problem.dtype.itemsize)
    entry = rates.alone if f == 1 else rates.entry
    each = rates.read * outputs + entry * width + rates.product * 2 * width * f
    sums = rates.sum * count * G * f * width
    return (
        rates.start
        + rates.move * moved(problem)
        + G * terms * (each + rates.weight * f)
        + sums
    )


def moved(problem: ConvProblem) -> int:
    """Entries of x whose images, and of k whose features, do not stand last.

    And those of x̃ where there are zeros between the entries of x.
    """
    x_axes, kernel_axes, _ = problem.spec.dimension_numbers
    last = len(x_axes) - 1
    of_x = 0 if x_axes[0] == last else math.prod(problem.x_shape)
    if problem.spec.is_input_dilated:
        of_x += padded_bytes(problem) // problem.dtype.itemsize
    return of_x + (0 if kernel_axes[0] == last else math.prod(problem.kernel_shape))


def _blocks(terms: int, width: int, f: int, itemsize: int) -> tuple[int, int]:
    """(number, size) of the blocks of q."""
    fitting = PATCHES // itemsize // max(width, f)
    # The sums are read and written for each block: one is worth twice the memory.
    size = terms if terms <= 2 * fitting else max(fitting, 1)
    return blocks_of(terms, min(size, CHAIN))


def _parts(size: int, width: int, f: int) -> int:
    """How many sums of their own a product is, which are added up at the end.

    The sums are written for each: no more than a quarter of what the product reads.
    """
    if min(width, f) < COLUMNS:
        return 1
    most = min(size // SUM, PARTS, size * (width + f) // (4 * width * f))
    return divisor(size, most)


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Add up the products of the blocks of q, group after group."""
    spec, sums, G = problem.spec, problem.sum_dtype, problem.spec.batch_group_count
    batch, channel, *spatial = spec.dimension_numbers.lhs_spec
    feature, in_feature, *taps = spec.dimension_numbers.rhs_spec
    x, axes = padded(x.transpose(channel, *spatial, batch), axes_of(problem))
    kernel = kernel.transpose(in_feature, *taps, feature)  # [C, *K, F]
    terms, kernel = kernel.shape[:-1], kernel.reshape(-1, G, kernel.shape[-1] // G)
    if kernel.shape[-1] == 1:
        # XLA:CPU inlines products with a vector, and adds their terms up in a row.
        kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, 1)))
    total, _, f = kernel.shape
    patches, width = _reader(problem, x, axes, terms)
    count, size = _blocks(total, width, f, problem.dtype.itemsize)
    parts = _parts(size, width, f)
    patches_first = width < f  # the smaller matrix
    precision = problem.precision if patches_first else problem.exchanged_precision

    def product(index: Index, group: Index) -> jax.Array:
        start, q, new = block(index, count, size, total)
        k = cut(kernel, {0: (start, size), 1: (group, 1)})[:, 0]
        # Both: zero times an infinity would not be zero.
        k, X = only(new, k), only(new, patches(q, group))
        pair = (X, k) if patches_first else (k, X)
        if parts == 1:
            return multiplied(*pair)
        split = [a.reshape(parts, -1, a.shape[-1]) for a in pair]
        return jax.vmap(multiplied)(*split).sum(0, dtype=sums)

    def multiplied(first: jax.Array, second: jax.Array) -> jax.Array:
        contracted = 0
        if max(width, f) >= WIDE:
            # One that is cut out as well is moved entry by entry.
            first = written(lax.optimization_barrier(first).T)
            first, contracted = lax.optimization_barrier(first), 1
        return lax.dot_general(
            first,
            second,
            (((contracted,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=sums,
        )

    shape = (width, f) if patches_first else (f, width)

    def of_group(group: Index) -> jax.Array:
        return summed(count, lambda index: product(index, group), shape, sums, x)

    if G == 1:
        y = of_group(np.int32(0)).astype(problem.output_dtype)[None]
    else:
        y = stacked(G, of_group, shape, problem.output_dtype, x)
    return spec.laid_out(_unpacked(problem, y, patches_first))


def _reader(
    problem: ConvProblem, x: jax.Array, axes: Sequence[Axis], terms: Sequence[int]
) -> tuple[Callable[[jax.Array, Index], jax.Array], int]:
    """What reads X [q, (o, n)] for some q of one group, and how many (o, n) there are.

    Args:
      problem: whose batch groups split n.
      x: x̃ [C, *I, N], with its zeros in place.
      axes: of x̃.
      terms: sizes of what q counts, (C, *K).
    """
    N, G = problem.batch, problem.spec.batch_group_count
    # Entry s·o + d·t − p of channel c stands as far from the first as o and q say.
    pitches = [math.prod(a.size for a in axes[i:]) for i in range(len(axes) + 1)]
    steps = [pitches[0], *(a.rhs_dilation * p for a, p in _pairs(axes, pitches))]
    origin = -sum(a.low * p for a, p in _pairs(axes, pitches))
    outer, run, unit = axes, N // G, G
    if _is_sliced(problem):
        outer, run, unit = axes[:-1], _row(problem), N
        x = jnp.pad(x.reshape(-1), (0, VECTOR))  # the last row may read so far
    else:
        x = x.reshape(-1, run)
    grid = coordinates(outer, "outputs")
    offsets = np.zeros(1, np.int32)
    for o, (axis, pitch) in zip(grid, _pairs(outer, pitches), strict=True):
        offsets = offsets + np.int32(axis.stride * pitch * unit) * o
    width = len(offsets) * run

    def patches(q: jax.Array, group: Index) -> jax.Array:
        base = origin
        for t, step in zip(unravel(q, terms), steps, strict=True):
            base = base + t * np.int32(step)
        start = lax.optimization_barrier(base * unit + group)
        X = runs(x, [start[:, None] + offsets[None]], run)
        # XLA merges the axes in the same loop, which then copies entry by entry.
        X = lax.optimization_barrier(X) if len(offsets) > 1 else X
        return X.reshape(len(q), width)

    return patches, width


def _unpacked(problem: ConvProblem, y: jax.Array, patches_first: bool) -> jax.Array:
    """[N, *O, F] of the products of all groups, [G, (o, n), f] or [G, f, (o, n)].

    Moved in one step: XLA gives products that are transposed twice a layout that costs
    more than both, 2.7 instead of 0.33 ms for 24 x 1024 entries.
    """
    N, outputs = problem.batch, problem.output_spatial
    G, first = problem.spec.batch_group_count, 1 if patches_first else 2
    run = _row(problem) if _is_sliced(problem) else N // G
    f = y.shape[3 - first]
    y = y.reshape((G, -1, run, f) if patches_first else (G, f, -1, run))
    if _is_sliced(problem):
        y = lax.slice_in_dim(y, 0, outputs[-1] * N, axis=first + 1)
    y = y.reshape(*y.shape[:first], *outputs, -1, *y.shape[first + 2 :])
    image = first + len(outputs)
    order = (image, *range(first, image), 0, image + 1 if patches_first else 1)
    y = y.transpose(order)[..., : problem.features // G]  # [N, *O, G, F/G]
    return y.reshape(*y.shape[:-2], -1)


def _row(problem: ConvProblem) -> int:
    """Entries of a row of outputs of all images, in whole vectors."""
    return -(-problem.output_spatial[-1] * problem.batch // VECTOR) * VECTOR


def _pairs(axes: Sequence[Axis], pitches: Sequence[int]) -> Iterator[tuple[Axis, int]]:
    """Each axis with how many entries its neighbours lie apart."""
    return zip(axes, pitches[1:], strict=False)


def _is_sliced(problem: ConvProblem) -> bool:
    """Few entries for each window and tap, but all outputs of an axis in a row."""
    spec = problem.spec
    in_a_row = spec.window_strides[-1] == 1  # of x̃, whatever the zeros in it
    return in_a_row and spec.groups == 1 and problem.batch <= FEW
