"""Groups as products of matrices, tap by tap: what XLA partitions by images.

With x̃ the input with its zeros in place, every tap is a product of what all outputs
read for it, group by group:

    y[n, (g, f), o] = Σ_t Σ_c x̃[n, (g, c), s·o + d·t − p] · k[(g, f), c, t].

Where the images are spread over devices each keeps its own: XLA partitions a product
by any of its axes, but gathers the whole batch on each device for a convolution with
feature groups (openxla/xla#47945).

Applies to feature groups with few taps. Costs a copy of x. Compiled for 8 devices with
the images spread over them (64 of 32x32x64, 3x3, 8 groups; jax 0.12.0.1), a layer and
its gradients take 232 MFLOP and 32 MB on each and one all-reduce, by stock 1230 and 50,
and two gathers of the batch besides. Spread along a spatial axis, neighbours exchange
edges for every place of the window along it, and nothing is gathered.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.algorithms.windows import accumulator, countable, spread
from jaxconv.spec import ConvProblem

PRODUCTS = 64
"""Taps up to which the program is not too long."""


def applies(problem: ConvProblem) -> bool:
    """Feature groups, few taps, and sizes that can be counted."""
    spec = problem.spec
    grouped = spec.feature_group_count > 1 and spec.batch_group_count == 1
    few = math.prod(problem.kernel_spatial) <= PRODUCTS
    return grouped and few and countable(problem)


def run(
    problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Callable
) -> jax.Array:
    """Sum the products of all taps."""
    spec, G = problem.spec, problem.spec.groups
    batch, channel, *spatial = spec.dimension_numbers.lhs_spec
    feature, in_feature, *taps = spec.dimension_numbers.rhs_spec
    x = x.transpose(batch, *spatial, channel)
    x = spread(x, [(0, 0, 0), *spec.edges, (0, 0, 0)])
    kernel = kernel.transpose(*taps, in_feature, feature)
    kernel = kernel.reshape(*kernel.shape[:-1], G, -1)  # [*K, C, G, f]
    # Axis by axis: one that is spread over devices takes its neighbours' edges once
    # for each place along it, and not for each tap.
    reads = {(): x}
    for axis, (count, size, stride, dilation) in enumerate(
        zip(
            problem.kernel_spatial,
            problem.output_spatial,
            spec.window_strides,
            spec.rhs_dilation,
            strict=True,
        ),
        start=1,
    ):
        span = stride * (size - 1) + 1
        reads = {
            (*tap, t): lax.slice_in_dim(
                array, dilation * t, dilation * t + span, stride, axis
            )
            for tap, array in reads.items()
            for t in range(count)
        }
    rank = len(spatial)
    y: Any = None
    for tap, X in reads.items():
        X = X.reshape(*X.shape[:-1], G, -1)  # [N, *O, G, c]
        if y is not None:  # what is read for a tap waits for the one before
            X, y = lax.optimization_barrier((X, y))
        product: Any = lax.dot_general(
            X,
            kernel[tap],
            (((rank + 2,), (0,)), ((rank + 1,), (1,))),
            precision=problem.precision,
            preferred_element_type=accumulator(problem),
        )  # [G, N, *O, f]
        y = product if y is None else y + product
    y = jnp.moveaxis(y, 0, -2)
    y = y.reshape(*y.shape[:-2], -1).astype(problem.output_dtype)
    return spec.laid_out(y)
