"""Layers under vmap: gradients of single examples, and ensembles of kernels."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax import lax

from jaxconv.bench.measure import Row
from jaxconv.bench.programs import measure_program


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A layer with 3x3 taps on x [N, H, W, C], in as many groups as the kernel says."""
    return lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def examples(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    """The kernel gradient of each example."""

    def one(x: jax.Array, g: jax.Array) -> jax.Array:
        _, pull_back = jax.vjp(functools.partial(_conv, x[None]), kernel)
        return pull_back(g[None])[0]

    return jax.vmap(one)(x, g)


def forward(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """Each kernel on images of its own."""
    return jax.vmap(_conv)(x, kernels)


def gradients(
    x: jax.Array, kernels: jax.Array, g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of each kernel and its images."""
    return jax.vmap(lambda x, kernel, g: jax.vjp(_conv, x, kernel)[1](g))(x, kernels, g)


def shared(x: jax.Array, kernels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradients of a loss of each kernel on the same images."""

    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return (_conv(x, kernel) ** 2).mean()

    return jax.vmap(jax.grad(loss, argnums=(0, 1)), (None, 0))(x, kernels)


class Mapped(NamedTuple):
    """A program under vmap, and the shapes of its operands."""

    program: Callable
    shapes: tuple[tuple[int, ...], ...]


def _examples(n: int, size: int, channels: int, groups: int = 1) -> Mapped:
    images = (n, size, size, channels)
    return Mapped(examples, (images, (3, 3, channels // groups, channels), images))


_IMAGES, _KERNELS = (32, 28, 28, 32), (8, 3, 3, 32, 32)

MAPPED: Mapping[str, Mapped] = {
    "examples": _examples(32, 28, 32),
    "examples.grouped": _examples(32, 28, 32, 8),
    "examples.depthwise": _examples(32, 28, 32, 32),
    "examples.many": _examples(512, 14, 8),
    "examples.many.depthwise": _examples(512, 14, 8, 8),
    "ensemble.forward": Mapped(forward, ((8, *_IMAGES), _KERNELS)),
    "ensemble.gradients": Mapped(gradients, ((8, *_IMAGES), _KERNELS, (8, *_IMAGES))),
    "ensemble.shared": Mapped(shared, (_IMAGES, _KERNELS)),
}
"""Programs by their names."""


def measure_mapped(name: str, *, rounds: int = 9) -> Row:
    """Time one of them, stock and accelerated in turn.

    Args:
      name: a key of `MAPPED`.
      rounds: runs of each, at least.

    Returns:
      A row, as `measure_program` makes it.
    """
    program, shapes = MAPPED[name]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    operands = tuple(
        jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)
    )
    return measure_program(name, "mapped", program, operands, rounds=rounds)
