"""The convolution as XLA has it: one `lax.conv_general_dilated`.

y[n, f, o] = Σ_{c, t} x̃[n, c, s·o + d·t − p] · k[f, c, t], with nothing rewritten.

Applies to every problem; it is the program that stock JAX emits. Symbolic padding,
which the gradients of convolutions with symbolic sizes have and lax refuses, and
negative padding of symbolic sizes, is laid around x by `lax.pad` beforehand.
"""

import math

import jax
from jax import lax

from jaxconv.algorithms import pad
from jaxconv.algorithms.order import transposed
from jaxconv.algorithms.protocol import Conv
from jaxconv.processor import Processor
from jaxconv.spec import ConvProblem, is_static


def applies(problem: ConvProblem) -> bool:
    """Always."""
    return True


CACHED = 4_000_000
"""Entries of y up to which it is cheap to add to them: 16 MB in float32."""

UNFILLED = 20
"""Features below which layers of one channel take several times as long a tap."""


def scatter_cost(problem: ConvProblem) -> float:
    """Seconds, about, of an input-dilated convolution by XLA:CPU.

    Its routine multiplies x by the kernel, and adds the products up where windows
    overlap. Fitted as the cost of `subpixel` is. It has none for windows of more taps
    than x has entries: of 90 random ones of up to 49 entries most took 0.4 to 2.5 times
    as long, and with one channel and up to 4000 they take as long for each entry.
    """
    outputs, taps = math.prod(problem.output_shape), problem.taps
    entries = math.prod(problem.x_spatial)
    if pad.is_exchanged(problem):
        read = (0.6e-9 if len(problem.x_spatial) == 1 else 0.07e-9) * entries
        return 2.1e-5 + (1.5e-9 + read) * outputs * problem.channels
    runs = problem.batch * entries * taps
    scattered = runs * problem.features
    products = 2.6e-12 * scatter_flops(problem)
    added = (2.7e-10 if outputs <= CACHED else 14e-10) * scattered + 1.5e-9 * runs
    moved = 0.9e-10 * math.prod(problem.x_shape) + 1.1e-10 * transposed(problem)
    moved += _ordered(problem)
    return 2.1e-5 + products + added + moved


def scatter_flops(problem: ConvProblem) -> int:
    """Multiplications and additions of a product of x with the whole kernel."""
    taps = problem.taps
    return 2 * math.prod(problem.x_shape) * taps * problem.features


_NARROW = {
    (1, False): (0.9e-9, 2e-10, 9e-12),
    (1, True): (8.6e-9, 2.5e-10, 8e-12),
    (2, False): (1.3e-9, 0.6e-10, 25e-12),
    (2, True): (2.3e-9, 3.2e-10, 22e-12),
    (3, False): (1.1e-8, 2.5e-9, 23e-12),
    (3, True): (6.6e-9, 1.8e-8, 3e-12),
}
"""Seconds on narrow vectors for each window and tap, each entry of them, each product.

By axes, and whether the entries that a window or its steps read stand apart.
"""


def gradient_cost(problem: ConvProblem, processor: Processor) -> float:
    """Seconds, about, of a dense kernel gradient by XLA:CPU.

    It packs the cotangent as the weights of a convolution whose features fill vectors
    and whose channels are the layer's images. Windows of few images are read slowly,
    three dimensions much more so, and a dilated input, as of transposed layers, most:
    it has no routine for those, nor for windows that are larger than the input and are
    not padded. Fitted as the cost of `patches_gradient` is, for the Xeon to 730 layers,
    and for narrow vectors to 402.
    """
    rank, points = len(problem.x_spatial), problem.taps
    window = problem.channels * points
    rows = problem.batch * problem.outputs
    exchanged = pad.is_exchanged(problem) and not pad.mends(problem)
    if exchanged or problem.spec.is_input_dilated:
        rate = 4e9 if exchanged else 9e9
        return 2.1e-5 + 2 * rows * window * problem.features / rate
    lanes = 8 if processor is Processor.NARROW else 16
    flops = 2 * rows * window * -(-problem.features // lanes) * lanes
    moved = math.prod(problem.x_shape) + math.prod(problem.kernel_shape)
    if processor is Processor.WIDE_AMD:
        if rank == 1:
            read = 1.1e-9 + 0.19e-9 * max(problem.channels / 4, 1)
            return 2.3e-5 + read * rows * points + flops / 450e9 + 0.3e-9 * moved
        if rank == 2:
            return 3.4e-5 + 0.8e-9 * rows * points + flops / 265e9 + 0.5e-9 * moved
        return 3.9e-5 + 5.7e-9 * rows * window + flops / 310e9 + 0.7e-9 * moved
    # There are faster routines while the weights stay in the cache of a core.
    weights = 4 * window * problem.features
    cached = weights <= 1.61e6
    strided = problem.spec.is_kernel_dilated
    apart = strided or problem.spec.is_strided
    channel, few = 1 / problem.channels, problem.features <= 24
    if processor is Processor.NARROW:
        of_windows, of_entries, each = _NARROW[min(rank, 3), apart]
        read = of_windows * channel + of_entries
        return 6e-5 + read * rows * window + each * flops + 1.1e-9 * moved
    if rank == 1 and strided:
        read, each = 4e-9 * channel + 3.2e-10, 5.6e-12
    elif rank == 1:
        read, each = 5.4e-10 * channel + 2e-10, 5e-12
    elif rank > 2:
        read, each = (1.5e-8, 8.4e-12) if apart else (5.2e-9, 4.2e-12)
    elif strided:
        read = (8.8e-10 + 3.6e-9 * few) * channel
        each = 1.2e-11 if cached else 2.1e-11
    elif apart:
        read, each = 2.6e-9 * few * channel, 7.5e-12 if cached else 1.2e-11
    elif processor is Processor.HALVED:
        # 3x3 at 56 with 64 channels takes it 11 ms, and by patches 12 to 13. For 483
        # random layers of up to 8 channels the choice is 1.16 times as fast as stock,
        # and 1.08 times if few features or large weights count as others do.
        read = (1e-9 + 3.6e-9 * few) * channel
        each = 8.5e-12 if weights <= 1e7 else 2.5e-11
    else:
        read, each = 1e-9 * channel, 1.1e-11 if cached else 3.9e-11
    return 4e-5 + read * rows * window + each * flops + 0.7e-9 * moved


def depthwise_gradient_cost(problem: ConvProblem) -> float:
    """Seconds, about, of a depthwise kernel gradient of up to 16 groups by XLA:CPU.

    With one feature each, several taps and at most two axes: of 75 random ones most
    take 0.4 to 2.5 times as long. It adds up the images of each window at once.
    """
    windows = math.prod((*problem.kernel_spatial, *problem.output_spatial))
    each = 2.3e-9 + 0.22e-9 * problem.channels
    return 3e-5 + each * windows * problem.spec.batch_group_count


def dense_cost(problem: ConvProblem) -> float:
    """Seconds, about, of a dense convolution in one or two dimensions.

    The longer of two fits: to the layers of `overlap_add`, and to those of `patches`,
    of few outputs and many weights. Some of these take several times as long. For one
    channel it is a fit of its own, to 170 random layers of 1 to 128 features.
    """
    outputs = problem.batch * problem.outputs
    reads, flops = outputs * problem.taps, dense_flops(problem)
    if problem.channels == 1:
        read = 7.5e-10 if problem.features < UNFILLED else 0.9e-10
        seconds = 3.8e-5 + 1.07e-8 * outputs + read * reads + 2.6e-12 * flops
        return seconds + _ordered(problem)
    read = 1.6e-9 + 9.1e-11 * problem.channels
    many = 3.1e-5 + read * reads + 2.25e-12 * flops + _ordered(problem)
    return max(many, 1e-5 + 3e-12 * flops + 1.8 * _ordered(problem))


def _ordered(problem: ConvProblem) -> float:
    """Seconds, about, for the weights: more where the features do not stand last."""
    feature, in_feature, *_ = problem.spec.dimension_numbers.rhs_spec
    each = 1.3e-10 if in_feature < feature else 6.7e-10
    return each * math.prod(problem.kernel_shape)


def dense_flops(problem: ConvProblem) -> int:
    """Multiplications and additions, those with zeros between entries too."""
    outputs = problem.batch * problem.outputs
    return 2 * outputs * math.prod(problem.kernel_shape)


def grouped_cost(problem: ConvProblem) -> float:
    """Seconds, about, of a grouped convolution by XLA:CPU.

    It reads windows group by group, 4 ns a tap, and a group's features fill vectors of
    8 or 16. It has no routine for three axes. Fitted as the cost of `patches` is; for
    one feature to 166 random layers, for groups of one channel to 135 of 4 to 144
    groups, and to 11 layers' gradients of 8 to 1024 single examples.
    """
    G = problem.spec.feature_group_count
    reads = problem.batch * problem.outputs * problem.taps * G
    size = math.prod(problem.x_shape) + math.prod(problem.output_shape)
    copied = 0.2e-9 * size + 0.35e-9 * transposed(problem)
    if problem.channels == 1 and len(problem.x_spatial) < 3:
        seconds = 5.4e-5 + reads * (0.75e-9 + 0.03e-9 * problem.features / G)
        # What vmap has moved XLA leaves where it was.
        return seconds if problem.spec.members > 1 else seconds + copied
    each = problem.features // G
    lanes = 8 if each <= 2 else 16
    flops = 2 * reads * problem.channels * (-(-each // lanes) * lanes)
    rate = 175e9 if len(problem.x_spatial) < 3 else 8.6e9
    seconds = 3.7e-9 * reads + flops / rate
    if each == 1 and len(problem.x_spatial) < 3:
        # Products with a vector: 2.3 ns a tap with 8 channels, 8.5 with 12.
        full = problem.channels % 8 == 0
        seconds = ((2e-9 if full else 7.8e-9) + 0.06e-9 * problem.channels) * reads
    return 4.3e-5 + 1.7e-6 * G + seconds + copied


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Compute `problem` by XLA's own convolution, which leaves nothing to others."""
    return by_lax(problem, x, kernel)


def by_lax(problem: ConvProblem, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of lax, for symbolic padding and sizes as well."""
    spec = problem.spec
    pads = [zeros for pair in spec.padding for zeros in pair]
    if not is_static(*pads) or (min(pads, default=0) < 0):  # else `crop` was planned
        x, spec = pad.zeros_around(spec, x)
    return lax.conv_general_dilated(
        x,
        kernel,
        **spec.geometry,
        precision=problem.precision,
        preferred_element_type=problem.preferred_element_type,
        out_sharding=problem.out_sharding,
    )
