"""Layers under transforms: gradients of examples, ensembles, second derivatives."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxconv.bench.programs import measure_program
from jaxconv.bench.rows import Row

Pair = tuple[jax.Array, jax.Array]


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


def _loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return (_conv(x, kernel) ** 2).mean()


def examples(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    """The kernel gradient of each example."""

    def one(x: jax.Array, g: jax.Array) -> jax.Array:
        _, pull_back = jax.vjp(functools.partial(_conv, x[None]), kernel)
        return pull_back(g[None])[0]

    return jax.vmap(one)(x, g)


def forward(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """Each kernel on images of its own."""
    return jax.vmap(_conv)(x, kernels)


def gradients(x: jax.Array, kernels: jax.Array, g: jax.Array) -> Pair:
    """The gradients of each kernel and its images."""
    return jax.vmap(lambda x, kernel, g: jax.vjp(_conv, x, kernel)[1](g))(x, kernels, g)


def shared(x: jax.Array, kernels: jax.Array) -> Pair:
    """The gradients of a loss of each kernel on the same images."""
    return jax.vmap(jax.grad(_loss, argnums=(0, 1)), (None, 0))(x, kernels)


def hessian(x: jax.Array, kernel: jax.Array, dx: jax.Array, dkernel: jax.Array) -> Pair:
    """The Hessian of a loss times a vector, forward over reverse."""
    gradients = jax.grad(_loss, argnums=(0, 1))
    return jax.jvp(gradients, (x, kernel), (dx, dkernel))[1]


def hessian_reverse(
    x: jax.Array, kernel: jax.Array, dx: jax.Array, dkernel: jax.Array
) -> Pair:
    """The same, reverse over reverse."""

    def slope(x: jax.Array, kernel: jax.Array) -> jax.Array:
        gx, gkernel = jax.grad(_loss, argnums=(0, 1))(x, kernel)
        return (gx * dx).sum() + (gkernel * dkernel).sum()

    return jax.grad(slope, argnums=(0, 1))(x, kernel)


def penalty(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The kernel gradient of a penalty on input gradients whose norm is not 1."""

    def excess(kernel: jax.Array) -> jax.Array:
        gradients = jax.grad(_loss)(x, kernel)
        norms = jnp.sqrt((gradients**2).sum((1, 2, 3)))
        return ((norms - 1) ** 2).mean()

    return jax.grad(excess)(kernel)


def adaptation(
    x: jax.Array, z: jax.Array, kernel: jax.Array, second: jax.Array
) -> Pair:
    """A step of meta-learning: the gradient through a step of each task's own."""

    def loss(kernels: Pair, x: jax.Array) -> jax.Array:
        first, second = kernels
        return _loss(jnp.tanh(_conv(x, first)), second)

    def adapted(kernels: Pair, x: jax.Array, z: jax.Array) -> jax.Array:
        gradients = jax.grad(loss)(kernels, x)
        own = jax.tree.map(lambda kernel, g: kernel - 0.1 * g, kernels, gradients)
        return loss(own, z)

    def over_tasks(kernels: Pair) -> jax.Array:
        return jax.vmap(adapted, (None, 0, 0))(kernels, x, z).mean()

    return jax.grad(over_tasks)((kernel, second))


class Transformed(NamedTuple):
    """A program of transformed layers, and the shapes of its operands."""

    program: Callable
    shapes: tuple[tuple[int, ...], ...]


def _examples(n: int, size: int, channels: int, groups: int = 1) -> Transformed:
    images = (n, size, size, channels)
    return Transformed(examples, (images, (3, 3, channels // groups, channels), images))


def _layer(groups: int, taps: int = 3) -> tuple[tuple[int, ...], ...]:
    return (8, 28, 28, 64), (taps, taps, 64 // groups, 64)


_IMAGES, _KERNELS = (32, 28, 28, 32), (8, 3, 3, 32, 32)

TRANSFORMED: Mapping[str, Transformed] = {
    "examples": _examples(32, 28, 32),
    "examples.grouped": _examples(32, 28, 32, 8),
    "examples.depthwise": _examples(32, 28, 32, 32),
    "examples.many": _examples(512, 14, 8),
    "examples.many.depthwise": _examples(512, 14, 8, 8),
    "ensemble.forward": Transformed(forward, ((8, *_IMAGES), _KERNELS)),
    "ensemble.gradients": Transformed(
        gradients, ((8, *_IMAGES), _KERNELS, (8, *_IMAGES))
    ),
    "ensemble.shared": Transformed(shared, (_IMAGES, _KERNELS)),
    "hessian": Transformed(hessian, _layer(1) * 2),
    "hessian.grouped": Transformed(hessian, _layer(8) * 2),
    "hessian.depthwise": Transformed(hessian, _layer(64) * 2),
    "hessian.reverse": Transformed(hessian_reverse, _layer(1) * 2),
    "hessian.reverse.pointwise": Transformed(hessian_reverse, _layer(1, 1) * 2),
    "hessian.reverse.grouped": Transformed(hessian_reverse, _layer(8) * 2),
    "hessian.reverse.depthwise": Transformed(hessian_reverse, _layer(64) * 2),
    "penalty.grouped": Transformed(penalty, _layer(8)),
    "adaptation": Transformed(
        adaptation, (*((8, 5, 28, 28, 32),) * 2, *(_KERNELS[1:],) * 2)
    ),
}
"""Programs by their names."""


def measure_transformed(name: str, *, rounds: int = 9) -> Row:
    """Time one of them, stock and accelerated in turn.

    Args:
      name: a key of `TRANSFORMED`.
      rounds: runs of each, at least.

    Returns:
      A row, as `measure_program` makes it.
    """
    program, shapes = TRANSFORMED[name]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    operands = tuple(
        jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)
    )
    return measure_program(name, "transformed", program, operands, rounds=rounds)
