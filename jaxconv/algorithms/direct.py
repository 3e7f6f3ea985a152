"""The convolution as XLA has it: one `lax.conv_general_dilated`.

y[n, f, o] = Σ_{c, t} x̃[n, c, s·o + d·t − p] · k[f, c, t], with nothing rewritten.

Applies to every problem; it is the program that stock JAX emits. Symbolic padding,
which the gradients of convolutions with symbolic sizes have and lax refuses, and
negative padding of symbolic sizes, is laid around x by `lax.pad` beforehand.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.spec import ConvProblem, is_static


def applies(problem: ConvProblem) -> bool:
    """Always."""
    return True


def gradient_cost(problem: ConvProblem) -> float:
    """Seconds, about, of a dense kernel gradient by XLA:CPU.

    It packs the cotangent as the weights of a convolution whose features fill vectors
    of 16 and whose channels are the layer's images: 250 GFLOP/s while the weights stay
    in the cache of a core, 32 beyond, 200 and 75 with a window dilated by the layer's
    stride, or steps of the layer's dilation. Windows of few images are read slowly,
    most of all for few features. One dimension costs less, three much more, a dilated
    input, as of transposed layers, most: it has no routine for those. Fitted as the
    cost of `patches_gradient` is.
    """
    spec, rank = problem.spec, len(problem.x_spatial)
    if max(spec.lhs_dilation) > 1:
        products = math.prod(problem.output_shape) * problem.channels
        return 2 * products * math.prod(problem.kernel_spatial) / 9e9
    window = problem.channels * math.prod(problem.kernel_spatial)
    entries = window * problem.batch * math.prod(problem.output_spatial)
    features = -(-problem.features // 16) * 16
    cached = 4 * window * problem.features <= 1.61e6
    if rank == 1:
        rate = 250e9
    elif rank > 2:
        rate = 20e9
    elif max(*spec.rhs_dilation, *spec.window_strides) > 1:
        rate = 200e9 if cached else 75e9
    else:
        rate = 250e9 if cached else 32e9
    read = 0.06e-9 + (2.4e-9 if problem.features <= 24 else 0.37e-9) / problem.channels
    read *= {1: 0.25, 2: 1}.get(rank, 10)
    return 7e-5 + read * entries + 2 * entries * features / rate


def grouped_cost(problem: ConvProblem) -> float:
    """Seconds, about, of a grouped convolution by XLA:CPU.

    10 √C GFLOP/s, where C is a group's channels and its features fill vectors of 16;
    an eighth of that with three axes, which it has no routine for. Fitted as the cost
    of `patches` is.
    """
    G = problem.spec.feature_group_count
    flops = 2 * problem.batch * math.prod(problem.output_spatial)
    flops *= problem.channels * math.prod(problem.kernel_spatial)
    flops *= G * (-(-problem.features // G // 16) * 16)
    rate = 10e9 * math.sqrt(problem.channels) / (8 if len(problem.x_spatial) > 2 else 1)
    moved = math.prod(problem.x_shape) + math.prod(problem.output_shape)
    return 2e-5 + flops / rate + 4 * moved / 8e9


def run(
    problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Callable
) -> jax.Array:
    """Compute `problem` by XLA's own convolution."""
    spec = problem.spec
    padding, lhs_dilation = spec.padding, spec.lhs_dilation
    pads = [pad for pair in padding for pad in pair]
    if not is_static(*pads) or (min(pads, default=0) < 0):  # else `crop` was planned
        edges = [(0, 0, 0)] * x.ndim
        for axis, (low, high), dilation in zip(
            spec.dimension_numbers.lhs_spec[2:], padding, lhs_dilation, strict=True
        ):
            edges[axis] = (low, high, dilation - 1)
        x = lax.pad(x, jnp.zeros((), x.dtype), edges)
        padding, lhs_dilation = ((0, 0),) * len(padding), (1,) * len(padding)
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=spec.window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=spec.rhs_dilation,
        dimension_numbers=spec.dimension_numbers,
        feature_group_count=spec.feature_group_count,
        batch_group_count=spec.batch_group_count,
        precision=problem.precision,
        preferred_element_type=problem.preferred_element_type,
        out_sharding=problem.out_sharding,
    )
