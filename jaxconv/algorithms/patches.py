"""A convolution as a product of patches, by blocks of outputs.

With q = (n, o) for an image and an output position,

    y[q, f] = Σ_{t, c} X[q, (t, c)] · k[(t, c), f],
    X[(n, o), (t, c)] = x̃[n, c, s·o + d·t − p]

is a matrix product. X is written block by block of q, so that it stays in the cache.
Feature groups split c and f, and are taken one after the other.

Applies to convolutions without batch groups. Costs a write and a read of X in the
cache. For what XLA:CPU computes by nested loops, as groups, more than three spatial
axes and float64 in three, and for few outputs of many weights.
"""

import math

import jax
from jax import lax

from jaxconv.algorithms import direct
from jaxconv.algorithms.axes import axes_of, coordinates, countable, unravel
from jaxconv.algorithms.blocks import at, block, blocks_of, loop, put, zeros
from jaxconv.algorithms.order import transposed, written
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import entries, windows
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem

PATCHES, WEIGHTS = 2 << 20, 8 << 20
"""Bytes of X that are written at a time: as many as those of k, between the two."""

_WIDE = (6.3e-5, 0.0, 4.6e-10)
RATES = {kind: _WIDE for kind in Processor} | {
    Processor.NARROW: (2e-5, 6e-10, 1.8e-10),
}
"""Seconds for the program, a run of channels of X, and an entry of it.

Costs of layers are compared in the time of the products of an AMD EPYC with AVX-512. On
narrow vectors these take 3.5 times as long, but copies 1.2 to 2 times.
"""

PRODUCT = 2.2e-12
"""Seconds for a multiplication and addition on that processor."""

TAPS_LAST = 2e-9
"""Seconds for each weight of a kernel whose taps stand last, as OIHW has it.

It is moved entry by entry: 60 layers took 2 to 10 ns each (AMD EPYC without AVX-512).
"""


def applies(problem: ConvProblem) -> bool:
    """No batch groups, and sizes that can be counted."""
    return problem.spec.batch_group_count == 1 and countable(problem)


def cost(problem: ConvProblem) -> float:
    """Seconds, about, for groups: entries of X and runs of them, products, the loop.

    Fitted to 266 random grouped layers and input gradients on 2 cores of an Intel Xeon,
    jax 0.12.0.1, float32, and brought to the other costs of groups, which are an AMD
    EPYC's: these are 0.42 times what the Xeon takes. The choice takes 1.12 times as
    long as the best of 177 undilated ones.
    """
    G = problem.spec.feature_group_count
    rows = problem.batch * problem.outputs
    reads = rows * problem.taps * G
    entries, f = reads * problem.channels, problem.features // G
    count, _ = _blocks(problem)
    flops = 2 * entries * (0.2 * f + 0.8 * (-(-f // 16) * 16))
    written = 3.2e-10 * math.prod(problem.output_shape) + 5.2e-9 * rows * G
    copied = 1e-9 * reads + 8e-11 * entries + 2.1e-10 * transposed(problem)
    return 1.5e-5 + 1e-6 * count * G + copied + flops / 231e9 + written


def dense_cost(
    problem: ConvProblem, processor: Processor, product: float = PRODUCT
) -> float:
    """Seconds, about, without groups: the weights, products, entries of X.

    Fitted to 347 random layers and input gradients of one and two axes, 32 to 1024
    channels and features, 8 to 800 outputs and 0.3 to 8 million weights, on 2 cores of
    an AMD EPYC with AVX-512, jax 0.12.0.1, float32, but for the products, of 25 layers
    since blocks are as large as the weights: the choice takes 1.04 times as long as the
    faster over these.

    Args:
      problem: what is to be computed.
      processor: whose copies are counted.
      product: seconds for a multiplication and addition, by default where costs of
        layers are compared.
    """
    start, of_run, of_entry = RATES[processor]
    runs = problem.batch * problem.outputs * problem.taps
    copied = start + (of_run + of_entry * problem.channels) * runs
    count, _ = _blocks(problem)
    feature, in_feature, *taps = problem.spec.dimension_numbers.rhs_spec
    last = max(feature, in_feature, *taps)
    moved = {feature: 0.0, in_feature: 4.3e-10}.get(last, TAPS_LAST)
    read = (4.4e-11 * count + moved) * math.prod(problem.kernel_shape)
    return copied + read + product * direct.dense_flops(problem)


def _blocks(problem: ConvProblem) -> tuple[int, int]:
    """(number, size) of the blocks of q."""
    itemsize, G = problem.dtype.itemsize, problem.spec.feature_group_count
    terms, f = problem.channels * problem.taps, problem.features // G
    # Each product reads the weights, and puts them in order.
    at_once = max(PATCHES, min(terms * f * itemsize, WEIGHTS))
    rows = max(at_once // (max(terms, f) * itemsize), 1)
    return blocks_of(problem.batch * problem.outputs, rows)


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Multiply the patches block by block."""
    spec, axes = problem.spec, axes_of(problem)
    G = spec.feature_group_count
    x = spec.images(x)
    x = entries(x.reshape(*x.shape[:-1], G, -1), 2)  # [N·I, G, C/G]
    kernel = spec.filters(kernel)
    f = kernel.shape[-1] // G
    kernel = written(kernel.reshape(-1, G, f).swapaxes(0, 1))  # [G, t·c, f]
    positions = (problem.batch, *problem.output_spatial)
    t, total = coordinates(axes, "taps"), math.prod(positions)
    count, size = _blocks(problem)

    def write(step: jax.Array, y: jax.Array) -> jax.Array:
        index, group = unravel(step, (count, G))
        start, q, _ = block(index, count, size, total)
        n, *o = (i[:, None] for i in unravel(q, positions))
        X = windows(x, axes, n, o, t, group.reshape(1, 1))
        # XLA merges the axes in the same loop, which then copies entry by entry.
        X = lax.optimization_barrier(X).reshape(size, -1)
        part = lax.dot_general(
            X,
            at(kernel, group),
            (((1,), (0,)), ((), ())),
            precision=problem.precision,
            preferred_element_type=problem.sum_dtype,
        )
        part = part[:, None].astype(y.dtype)
        return put(y, part, {0: start, 1: group})

    y = zeros((total, G, f), problem.output_dtype, x)
    y = loop(count * G, write, y).reshape(*positions, G * f)
    return spec.laid_out(y)
