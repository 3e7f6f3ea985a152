"""A depthwise convolution of few outputs and many terms, summed by blocks.

The kernel gradient of a depthwise layer is one: batch groups of one image each, whose
window is as large as the layer's output. With q = (c, t) for a channel and a tap of the
window, and each group's m features,

    y[o, (g, m)] = Σ_q x̃[g, c, s·o + d·t − p] · k[(g, m), q].

For the layer, q counts the outputs of all images, o its taps and g its channels. The
sum is taken block by block of q, entry by entry: with b counting within a block,

    a[b, o, g, m] += x̃[g, q + b, o] · k[(g, m), q + b],

and over b at the end. a stays in the cache, the loop over g uses the vector units, the
outputs find k and most of x where the one before left them, and both come from memory
once. Its code does not grow with the number of taps.

Few groups would leave these mostly empty. Points u along the window's last axis then
stand beside them, and q counts runs of those, each in a row of x̃: with o = (o⃗, o') and
s' and p' along that axis,

    a[b, o, (u, g), m] += x̃[g, q + b, o⃗, s'·o' + u − p'] · k[(g, m), q + b, u].

Several features for each channel are channels of one each, x written once for each, or
are taken one after the other where that copy would be large.

Applies to batch groups of one image each without feature groups. Costs a read and a
write of a for every four terms, and a copy of x for each of several features, or with
the zeros of that axis in place. Measured on 2 cores of an Intel Xeon, jax 0.12.0.1,
float32, stock's ms and ours: 3x3 at 56 207 and 3.8, with stride 2 50 and 1.7, 7x7 417
and 9.4, 1-D of 4 taps 152 and 3.7.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.algorithms.axes import axes_of, coordinates, countable, is_inside, unravel
from jaxconv.algorithms.blocks import (
    NEW_PAGES,
    block,
    blocks_of,
    cut,
    divisor,
    loop,
    only,
    zeros,
)
from jaxconv.algorithms.padding import padded_bytes, spanned
from jaxconv.algorithms.protocol import Conv
from jaxconv.algorithms.windows import entries, places, read
from jaxconv.processor import LANES
from jaxconv.spec import ConvProblem

SUMS, TERMS = 1 << 18, 4
"""Entries of a, and terms that each gets at a time.

With fewer the loop's own cost shows, with more a leaves the cache.
"""

ROW = 1 << 14
"""Entries of a for each of a block up to which more points stand beside the groups."""

FEW = 1 << 23
"""Terms that one thread adds up before two have begun: about a millisecond's."""


def applies(problem: ConvProblem) -> bool:
    """As many batch groups as images, no feature groups, and sizes to be counted."""
    spec = problem.spec
    single = spec.batch_group_count == problem.batch
    return spec.feature_group_count == 1 and single and countable(problem)


def cost(problem: ConvProblem) -> float:
    """Seconds, about: each term of each sum, where it is read, axes put in order.

    Fitted to 220 random kernel gradients of 2 to 512 groups, 1 to 4 features each, one
    to three axes, both layouts, on 2 cores of an AMD EPYC with AVX-512, jax 0.12.0.1,
    float32: nine tenths of them take 0.5 to 2.3 times as long. What moving an axis
    takes, in new pages above all, was fitted to 268 more with the channels first on one
    without AVX-512, to which the choice of this one or `runs_gradient` takes 1.04
    instead of 1.09 times as long as the faster.
    """
    x_axes, kernel_axes, _ = problem.spec.dimension_numbers
    entries, weights = math.prod(problem.x_shape), math.prod(problem.kernel_shape)
    terms, last = weights * problem.outputs, len(x_axes) - 1
    groups = problem.spec.batch_group_count
    moved = entries * (x_axes[0] != last) + weights * (kernel_axes[0] != last)
    beside = _beside(problem)
    lanes = beside * (problem.features if _is_repeated(problem) else groups)
    # With strides no points stand beside few groups, whose reads are far apart.
    apart = lanes < LANES and problem.spec.is_kernel_dilated
    seconds = (5.5e-11 + (5e-9 if apart else 2e-9) / lanes) * terms
    if beside > 1:
        moved += entries
    if problem.features > groups:
        seconds += 1.2e-9 * weights
    new = moved * problem.dtype.itemsize > NEW_PAGES
    return 2.4e-5 + seconds + (6.9e-10 if new else 4e-10) * moved


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Add up the blocks of q, then the entries within a block."""
    spec, axes = problem.spec, axes_of(problem)
    batch, channel, *spatial = spec.dimension_numbers.lhs_spec
    feature, in_feature, *taps = spec.dimension_numbers.rhs_spec
    G, sums = spec.batch_group_count, problem.sum_dtype
    x = x.transpose(channel, *spatial, batch)
    kernel = kernel.transpose(in_feature, *taps, feature)  # [C, *K, (g, m)]
    m = kernel.shape[-1] // G
    if _is_repeated(problem):
        x, G, m = jnp.repeat(x, m, -1), G * m, 1
    beside = _beside(problem)
    lanes, terms = beside * G, (*kernel.shape[:-2], axes[-1].taps // beside)
    kernel = kernel.reshape(-1, lanes, m)  # [q, (u, g), m]
    outputs = [o[None] for o in coordinates(axes, "outputs")]
    if beside > 1:
        x = spanned(x, [x.ndim - 2], axes[-1:]).reshape(*x.shape[:-2], -1)
    x = entries(x)  # [C·I, G], the last axis beside G if points are
    count, total = outputs[0].size, len(kernel)
    row, kept = count * lanes, len(axes) - (beside > 1)
    inside = is_inside(axes[:kept])
    # As many in a block as there are blocks: sums of sums, which rounding grows least.
    at_a_time = min(TERMS, total)
    most = min(max(SUMS // row, 1), math.isqrt(total), total // at_a_time)
    blocks, part = blocks_of(-(-total // at_a_time), most)
    size = at_a_time * part

    def places_of(q: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Where the outputs read for the points q, [b, o], and from where on."""
        c, *t = unravel(q[:, None], terms)
        where = places(x, axes[:kept], c, outputs[:kept], t[:kept])
        if beside == 1:
            return where, None
        starts = (axes[-1].stride * outputs[-1] + beside * t[-1]) * G
        starts = jnp.broadcast_to(starts, (len(q), count))
        return where, lax.optimization_barrier(starts)

    def sum_up(kernel: jax.Array) -> jax.Array:
        """The sums with what the groups have of one feature, [o, g]."""

        def add(index: jax.Array, a: jax.Array) -> jax.Array:
            start, q, new = block(index, blocks, size, total)
            found = (new, *places_of(q))
            for first in range(0, size, part):
                part_of = functools.partial(
                    lax.slice_in_dim, start_index=first, limit_index=first + part
                )
                own, where, starts = jax.tree.map(part_of, found)
                # Each read and cut alone, and not out of one for all: 3x3 at 56 takes
                # 29 ms by a read for all, not 1.8 (jax 0.10.2), 7x7 56 by a cut, not 9.
                X = read(x, where, inside, starts, lanes).astype(sums)
                k = cut(kernel, {0: (start + first, part)}).astype(sums)
                k = lax.broadcast_in_dim(k, (part, count, lanes), (0, 2))
                a = lax.add(a, only(own, lax.mul(X, k)))
            return a

        a = zeros((part, count, lanes), sums, x)
        a = loop(blocks, add, a, routine=total * row < FEW)
        a = a.sum(0, dtype=sums).reshape(count, beside, G).sum(1, dtype=sums)
        return a.astype(problem.output_dtype)

    y = jnp.stack([sum_up(kernel[..., feature]) for feature in range(m)], -1)
    y = y.reshape(1, *problem.output_spatial, -1)  # [1, *O, (g, m)]
    return spec.laid_out(y)


def _is_repeated(problem: ConvProblem) -> bool:
    """Whether each channel is written once for each of its features.

    The features are taken one after the other else. Over 57 random kernel gradients of
    2 to 8 features for each channel 1.5 times as fast as with an axis for them, which
    XLA moves in two passes; with strides the copy is larger, and 3.5 times slower
    where the channels fill the vectors anyway (Intel Xeon).
    """
    groups = problem.spec.batch_group_count
    copied = problem.features // groups * math.prod(problem.x_shape)
    few = groups < 2 * LANES
    return problem.features > groups and (
        copied <= (8 if few else 2) * math.prod(problem.kernel_shape)
    )


def _beside(problem: ConvProblem) -> int:
    """Points along the window's last axis that stand beside the groups.

    Over 113 random kernel gradients of 2 to 28 channels 2.0 times as fast as with none,
    in geometric mean, and 0.83 to 5.8; with 32 channels as fast (Intel Xeon).
    """
    last, groups = axes_of(problem)[-1], problem.spec.batch_group_count
    in_a_row = last.lhs_dilation == last.rhs_dilation == 1
    if groups >= 2 * LANES or not in_a_row or padded_bytes(problem) >= 2**31:
        return 1
    most = ROW // (problem.outputs * problem.features)
    return divisor(last.taps, most)
