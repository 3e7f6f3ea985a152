"""Identities that compute a convolution by simpler convolutions and data movement.

One identity per file, each a module with the two functions of `protocol.Algorithm`. It
is handed the function that computes its smaller convolutions, so that it knows neither
the planner nor the primitive, and algorithms nest to any depth. `protocol` says what an
algorithm is; `axes`, `padding`, `windows`, `blocks` and `order` are what several share.

Where a file says on which processor something was measured, see `jaxconv.processor` for
the kinds: an AMD EPYC, or one with AVX-512, and no more, is of the fifth generation,
one without AVX-512 of the third.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from jaxconv.algorithms import (
    aligned,
    by_channels,
    by_groups,
    by_image,
    by_member,
    by_output,
    by_rows,
    by_tap,
    channels_last,
    crop,
    depthwise,
    depthwise_gradient,
    direct,
    empty,
    fold_depth,
    fold_images,
    fourier,
    overlap_add,
    overlap_slices,
    pad,
    patches,
    patches_gradient,
    per_group,
    pointwise_groups,
    product,
    runs_gradient,
    shifts,
    slices_gradient,
    stencil,
    subpixel,
    swap,
    trim,
)
from jaxconv.algorithms.order import written
from jaxconv.algorithms.protocol import Algorithm, Conv
from jaxconv.spec import ConvProblem, ConvSpec

ALGORITHMS: dict[str, Algorithm] = {
    "empty": empty,
    "aligned": aligned,
    "crop": crop,
    "trim": trim,
    "overlap_add": overlap_add,
    "pad": pad,
    "product": product,
    "pointwise_groups": pointwise_groups,
    "by_channels": by_channels,
    "by_groups": by_groups,
    "by_image": by_image,
    "by_member": by_member,
    "by_output": by_output,
    "by_rows": by_rows,
    "by_tap": by_tap,
    "subpixel": subpixel,
    "swap": swap,
    "shifts": shifts,
    "stencil": stencil,
    "depthwise": depthwise,
    "depthwise_gradient": depthwise_gradient,
    "runs_gradient": runs_gradient,
    "per_group": per_group,
    "fold_depth": fold_depth,
    "fold_images": fold_images,
    "fourier": fourier,
    "overlap_slices": overlap_slices,
    "slices_gradient": slices_gradient,
    "patches": patches,
    "patches_gradient": patches_gradient,
    "channels_last": channels_last,
    "direct": direct,
}
"""Every algorithm by its name, which is the name of its file."""

ROUTINES = frozenset(
    {"aligned", "direct", "channels_last", "by_member", "fold_images", "overlap_add"}
)
"""Algorithms that read their operands once, or leave all to a routine of XLA's.

What computes these may fuse with the copies that it takes: the input gradient of a
dense 3x3 layer then compiles in 24 ms, as stock's does, and else in 55.
"""


def compute(
    problem: ConvProblem,
    algorithm: str,
    choose: Callable[[ConvProblem], str],
    x: jax.Array,
    kernel: jax.Array,
) -> jax.Array:
    """Compute a problem by an algorithm, and its smaller ones by those chosen.

    Args:
      problem: what is to be computed.
      algorithm: a key of `ALGORITHMS`.
      choose: the algorithm of each smaller problem.
      x: the input.
      kernel: the kernel, of the same dtype.
    """
    if algorithm not in ROUTINES:
        # Else what computes them is fused into loops that read them several times: a
        # training step of a ResNeXt takes 89 ms, and 75 with the barrier.
        x, kernel = lax.optimization_barrier((written(x), written(kernel)))
    return ALGORITHMS[algorithm].run(problem, x, kernel, _smaller(problem, choose))


def _smaller(problem: ConvProblem, choose: Callable[[ConvProblem], str]) -> Conv:
    """What computes a problem's smaller convolutions, each by its own algorithm."""

    def conv(
        spec: ConvSpec,
        x: jax.Array,
        kernel: jax.Array,
        precision: Any = problem.precision,
    ) -> jax.Array:
        own = dataclasses.replace(
            problem,
            spec=spec,
            x_shape=tuple(x.shape),
            kernel_shape=tuple(kernel.shape),
            dtype=x.dtype,
            precision=precision,
        )
        return ALGORITHMS[choose(own)].run(own, x, kernel, _smaller(own, choose))

    return conv
