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
their edges, once for every place of the window beside the middle, as for a depthwise
layer of stock's: 233 MFLOP and 31 MB, by stock 1232 and 56 and the two gathers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.algorithms.axes import Axis, axes_of, countable
from jaxconv.algorithms.protocol import Conv
from jaxconv.spec import ConvProblem

PRODUCTS = 64
"""Taps up to which the program is not too long."""


def applies(problem: ConvProblem) -> bool:
    """Feature groups, few taps, and sizes that can be counted."""
    spec = problem.spec
    grouped = spec.feature_group_count > 1 and spec.batch_group_count == 1
    few = problem.taps <= PRODUCTS
    return grouped and few and countable(problem)


def run(problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv) -> jax.Array:
    """Sum the products of all taps."""
    spec, G = problem.spec, problem.spec.groups
    x, kernel = spec.images(x), spec.filters(kernel)
    kernel = kernel.reshape(*kernel.shape[:-1], G, -1)  # [*K, C, G, f]
    # Axis by axis: one that is spread over devices takes its neighbours' edges once
    # for each place along it, and not for each tap.
    reads = {(): x}
    for i, axis in enumerate(axes_of(problem), start=1):
        reads = {
            (*tap, t): _read(array, i, axis, t)
            for tap, array in reads.items()
            for t in range(axis.taps)
        }
    rank = len(problem.x_spatial)
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
            preferred_element_type=problem.sum_dtype,
        )  # [G, N, *O, f]
        y = product if y is None else y + product
    y = jnp.moveaxis(y, 0, -2)
    y = y.reshape(*y.shape[:-2], -1).astype(problem.output_dtype)
    return spec.laid_out(y)


def _read(x: jax.Array, i: int, axis: Axis, tap: int) -> jax.Array:
    """x̃[s·o + d·t − p] for all o, along axis `i`.

    It is shifted to s points per output, so that each device has those of its own
    outputs, and only the points that the shift takes across an edge move.
    """
    zero, between = jnp.zeros((), x.dtype), axis.lhs_dilation - 1
    edges = [(0, 0, 0)] * x.ndim
    if between:  # apart, as XLA's partitioner crashes if this crops besides
        edges[i] = (0, between, between)
        x = lax.pad(x, zero, edges)
    low, reach = axis.low - axis.rhs_dilation * tap, axis.stride * axis.outputs
    edges[i] = (low, reach - low - x.shape[i], 0)
    return lax.slice_in_dim(lax.pad(x, zero, edges), 0, reach, axis.stride, i)
