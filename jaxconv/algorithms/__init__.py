"""Identities that compute a convolution by simpler convolutions and data movement.

One identity per file, each a module with the two functions of `Algorithm`. An algorithm
is handed the function that computes its smaller convolutions, so that it knows neither
the planner nor the primitive, and algorithms nest to any depth.
"""

from typing import Any, Protocol

import jax

from jaxconv.algorithms import (
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
    fourier,
    overlap_add,
    overlap_slices,
    pad,
    patches,
    patches_gradient,
    per_group,
    pointwise_groups,
    product,
    shifts,
    slices_gradient,
    stencil,
    subpixel,
    swap,
)
from jaxconv.spec import ConvProblem, ConvSpec


class Conv(Protocol):
    """What algorithms leave smaller convolutions to."""

    def __call__(
        self,
        spec: ConvSpec,
        x: jax.Array,
        kernel: jax.Array,
        precision: Any = ...,
    ) -> jax.Array:
        """Compute it at the problem's precision, or that of exchanged operands."""
        ...


class Algorithm(Protocol):
    """What each module of this package offers."""

    def applies(self, problem: ConvProblem) -> bool:
        """Whether the identity holds for `problem` and simplifies it."""
        ...

    def run(
        self, problem: ConvProblem, x: jax.Array, kernel: jax.Array, conv: Conv
    ) -> jax.Array:
        """Compute `problem`, leaving smaller convolutions to `conv`."""
        ...


ALGORITHMS: dict[str, Algorithm] = {
    "empty": empty,
    "crop": crop,
    "overlap_add": overlap_add,
    "pad": pad,
    "product": product,
    "pointwise_groups": pointwise_groups,
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
    "per_group": per_group,
    "fold_depth": fold_depth,
    "fourier": fourier,
    "overlap_slices": overlap_slices,
    "slices_gradient": slices_gradient,
    "patches": patches,
    "patches_gradient": patches_gradient,
    "channels_last": channels_last,
    "direct": direct,
}
"""Every algorithm by its name, which is the name of its file."""
