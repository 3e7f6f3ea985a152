"""A convolution as one product with the whole kernel, added up where windows overlap.

Every entry of x is multiplied by every tap, and goes to the output that reads it there:

    Z[n, i, t, f] = Σ_c x[n, c, i] · k[f, c, t]
    y[n, f, o] = Σ_{t, i : L·i = o + d·t − p} Z[n, i, t, f]

Where the input features stand last in the kernel, as in the input gradient of a layer
whose output features do, the product takes it as it lies in memory: patches need it
transposed first. The flip of that gradient's kernel is undone here, and never computed.
No product meets a zero between the entries of a dilated input.

Applies to ungrouped convolutions with strides of one. Costs a write and a read of Z.
Input gradients of 3x3 layers in ms, on 2 cores of an AMD EPYC with AVX-512, jax
0.12.0.1, float32, by stock, as the best of the others, and so:

    8 images of 14x14, 256 channels    5.1   5.0   4.2
    8 images of 7x7, 512 channels      8.5   6.0   4.3
    1 image of 7x7, 1024 channels       50    22   3.4
"""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxconv.algorithms.axes import axes_of, countable
from jaxconv.algorithms.order import transposed
from jaxconv.algorithms.padding import spread
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import entries
from jaxconv.spec import ConvProblem

TAPS, WHOLE, PART = 32, 4_000_000, 8_000_000
"""Taps that are unrolled; bytes of Z up to which it is written as one; of a part of it,
and of a copy of the kernel where it needs one.

Parts are those of one tap along the first axis, which stay in the cache: 28x28 with 128
channels takes 4.4 ms by parts of 10 MB, and 4.8 with all 29 MB at once.
"""

WIDTH = 128
"""Columns of a part's product below which it is slower than a large Z.

3x3 on 9 images of 35x35, 29 channels: 0.95 ms by parts of 87 columns, 0.68 at once.
"""


def applies(problem: ConvProblem) -> bool:
    """No groups, strides of one, few taps, and parts of Z that stay in the cache."""
    spec, taps = problem.spec, problem.taps
    if spec.groups > 1 or not countable(problem) or spec.is_strided:
        return False
    held = _bytes(problem) // _parts(problem)
    if not as_it_lies(problem):
        held += problem.kernel_bytes
    return taps <= TAPS and held <= PART


def as_it_lies(problem: ConvProblem) -> bool:
    """Whether the product takes the kernel without a copy."""
    in_feature = problem.spec.dimension_numbers.rhs_spec[1]
    return in_feature == len(problem.kernel_shape) - 1


def _entries(problem: ConvProblem) -> int:
    """Entries of Z."""
    rows = problem.batch * math.prod(problem.x_spatial)
    return rows * problem.taps * problem.features


def _bytes(problem: ConvProblem) -> int:
    """Bytes of Z, which is of the dtype of sums."""
    return _entries(problem) * problem.sum_dtype.itemsize


def _parts(problem: ConvProblem) -> int:
    """In how many parts Z is written."""
    small = _bytes(problem) <= WHOLE
    width = problem.features * math.prod(problem.kernel_spatial[1:])
    return 1 if small or width < WIDTH else problem.kernel_spatial[0]


def cost(problem: ConvProblem) -> float:
    """Seconds, about: Z and its sum, the product, the kernel's way into order.

    Fitted to 260 random layers and input gradients of one to three axes, 3 to 1024
    channels and features, on 2 cores of an AMD EPYC with AVX-512, jax 0.12.0.1,
    float32: within 1.2 times of what they take.
    """
    size, taps = _entries(problem), problem.taps
    reads = problem.batch * problem.outputs * taps
    # Many taps, of which few meet an entry, are asked for one by one.
    read = 4.3e-10 if taps <= 9 or not problem.spec.is_input_dilated else 1.4e-9
    added = 4.5e-11 * size + (1.4e-11 * problem.features + read) * reads
    added += 3e-10 * math.prod(problem.output_shape) * (_parts(problem) - 1)
    multiplied = 4.8e-12 * size * problem.channels
    in_rows = problem.spec.dimension_numbers.rhs_spec[0] == len(problem.x_shape) - 1
    ordered = 1e-10 if as_it_lies(problem) else 2e-10 if in_rows else 8e-10
    moved = ordered * math.prod(problem.kernel_shape) + 2.3e-10 * transposed(problem)
    return 3.2e-5 + added + multiplied + moved


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Multiply, then add up what each tap gives to the outputs."""
    spec, axes, sums = problem.spec, axes_of(problem), problem.sum_dtype
    feature, in_feature, *taps = spec.dimension_numbers.rhs_spec
    x = spec.images(x)
    # As it lies where its input features stand last, else in rows of its features.
    lies = as_it_lies(problem)
    order = (*taps, feature, in_feature) if lies else (in_feature, *taps, feature)
    kernel = lax.rev(kernel, taps).transpose(order)

    def product(start: int, stop: int) -> jax.Array:
        """Z for some taps along the first axis, [N, *I, *K, F]."""
        part = lax.slice_in_dim(kernel, start, stop, axis=0 if lies else 1)
        columns = part.shape[:-1] if lies else part.shape[1:]
        # As a matrix: XLA transposes what has more axes.
        matrix = (-1, part.shape[-1]) if lies else (part.shape[0], -1)
        Z = lax.dot_general(
            x,
            part.reshape(matrix),
            (((x.ndim - 1,), (1 if lies else 0,)), ((), ())),
            precision=problem.precision,
            preferred_element_type=sums,
        )
        return Z.reshape(*x.shape[:-1], *columns)

    def placed(Z: jax.Array, *flipped: int) -> jax.Array:
        """What a tap, counted from the last, gives to the outputs."""
        edges = []
        for axis, t in zip(axes, flipped, strict=True):
            first = axis.low - axis.rhs_dilation * (axis.taps - 1 - t)
            last = axis.outputs - axis.spread_size - first
            edges.append((first, last, axis.lhs_dilation - 1))
        return spread(Z, [(0, 0, 0), *edges, (0, 0, 0)])

    y: Any = None
    along, *others = problem.kernel_spatial
    size = along // _parts(problem)
    for start in range(0, along, size):
        if y is not None:  # the next part waits for the one before
            x, y = lax.optimization_barrier((x, y))
        Z = product(start, start + size)
        whole = (slice(None),) * (1 + len(axes))
        terms = [
            placed(Z[(*whole, t, *rest)], start + t, *rest)
            for t, *rest in np.ndindex(size, *others)
        ]
        y = functools.reduce(lax.add, terms if y is None else [y, *terms])
    y = y.astype(problem.output_dtype)
    # Else what uses y adds it up once more, and Z is kept for that.
    return spec.laid_out(entries(y).reshape(y.shape))
