"""Norms of per-example kernel gradients are those of the gradients themselves."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv import norms

LAYERS = {
    "wide": ((4, 6, 6, 3), (3, 3, 3, 8), {}),
    "long": ((4, 40, 3), (3, 3, 2), {}),
    "strided": ((3, 9, 8, 4), (3, 2, 4, 5), {"strides": (2, 3), "padding": "VALID"}),
    "dilated": ((3, 9, 4), (3, 4, 5), {
        "dilation": 2, "input_dilation": 2, "padding": 2}),
    "grouped": ((3, 5, 5, 6), (3, 3, 2, 9), {"groups": 3}),
    "depthwise": ((3, 5, 5, 6), (3, 3, 1, 12), {"groups": 6}),
    "channels first": ((3, 4, 5, 5), (6, 4, 3, 3), {
        "dimension_numbers": ("NCHW", "OIHW", "NCHW")}),
    "images last": ((8, 3, 2), (3, 2, 4), {
        "dimension_numbers": ("HNC", "HIO", "HNC")}),
    "images last of many": ((5, 8, 2, 3), (3, 2, 4), {
        "dimension_numbers": ("HCN", "HIO", "HNC")}),
    "circular": ((3, 6, 4), (3, 4, 5), {"padding": "CIRCULAR"}),
    "no spatial axes": ((5, 4), (4, 3), {}),
    "two batch axes": ((2, 3, 6, 4), (3, 4, 5), {}),
    "one example": ((6, 4), (3, 4, 5), {}),
    "no outputs": ((3, 2, 4), (5, 4, 5), {"padding": "VALID"}),
    "no examples": ((0, 6, 4), (3, 4, 5), {}),
}  # fmt: skip


def by_gradients(x, kernel_shape, g, **options):
    """The squared norms of explicit gradients, one by one."""
    leading = x.ndim - (len(kernel_shape) - 1)
    layouts = options.get("dimension_numbers", ("N", "", "N"))
    axes = [layouts[i].index("N") for i in (0, 2)]
    one = functools.partial(jaxconv.conv_kernel_grad, kernel_shape=kernel_shape)
    if leading == 0:
        dkernel = one(x=x, g=g, **options)
        return jnp.sum(jnp.abs(dkernel) ** 2)
    others = math.prod(x.shape[: leading - 1])
    norms = []
    for xs, gs in zip(
        x.reshape(others, *x.shape[leading - 1 :]),
        g.reshape(others, *g.shape[leading - 1 :]),
        strict=True,
    ):
        for n in range(xs.shape[axes[0]]):
            dkernel = one(
                x=lax.slice_in_dim(xs, n, n + 1, axis=axes[0]),
                g=lax.slice_in_dim(gs, n, n + 1, axis=axes[1]),
                **options,
            )
            norms.append(jnp.sum(jnp.abs(dkernel) ** 2))
    shape = (*x.shape[: leading - 1], x.shape[leading - 1 + axes[0]])
    return jnp.asarray(norms).reshape(shape)


def operands(name, integers):
    x_shape, kernel_shape, options = LAYERS[name]
    layer = functools.partial(jaxconv.conv_forward, **options)
    y = jax.eval_shape(layer, {"kernel": jnp.ones(kernel_shape)}, jnp.ones(x_shape))
    return (
        jnp.asarray(integers(*x_shape)),
        kernel_shape,
        jnp.asarray(integers(*y.shape)),
        options,
    )


@pytest.mark.parametrize("way", ["_of_gradient", "_of_gram_matrices", None])
@pytest.mark.parametrize("block", [norms.BLOCK, 1], ids=["at once", "one by one"])
@pytest.mark.parametrize("name", LAYERS)
def test_norms_are_those_of_the_gradients(name, block, way, integers, monkeypatch):
    monkeypatch.setattr(norms, "BLOCK", block)
    if way is not None:
        other = {"_of_gradient", "_of_gram_matrices"} - {way}
        monkeypatch.setattr(norms, *other, getattr(norms, way))
    x, kernel_shape, g, options = operands(name, integers)
    actual = jaxconv.conv_kernel_grad_sq_norms(x, kernel_shape, g, **options)
    np.testing.assert_array_equal(actual, by_gradients(x, kernel_shape, g, **options))


@pytest.mark.parametrize(
    ("name", "way"),
    [("wide", "_of_gradient"), ("long", "_of_gradient"), ("late", "_of_gram_matrices")],
)
def test_the_smaller_is_held(name, way, integers, monkeypatch):
    taken = []

    def recorded(candidate):
        own = getattr(norms, candidate)
        return lambda *args: taken.append(candidate) or own(*args)

    for candidate in ("_of_gradient", "_of_gram_matrices"):
        monkeypatch.setattr(norms, candidate, recorded(candidate))
    layers = {**LAYERS, "late": ((2, 3, 3, 16), (3, 3, 16, 16), {})}
    x_shape, kernel_shape, options = layers[name]
    g = jnp.ones((*x_shape[:-1], kernel_shape[-1]))
    jaxconv.conv_kernel_grad_sq_norms(jnp.ones(x_shape), kernel_shape, g, **options)
    assert set(taken) == {way}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_floats_are_summed_in_float32(dtype):
    x, g = jnp.full((2, 512, 4), 1.0, dtype), jnp.full((2, 512, 4), 1.0, dtype)
    actual = jaxconv.conv_kernel_grad_sq_norms(x, (1, 4, 4), g)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, 16 * 512.0**2)  # float16 ends at 65504


@pytest.mark.parametrize("way", ["_of_gradient", "_of_gram_matrices"])
def test_complex_norms_are_real(way, integers, monkeypatch):
    other = {"_of_gradient", "_of_gram_matrices"} - {way}
    monkeypatch.setattr(norms, *other, getattr(norms, way))
    x = jnp.asarray(integers(2, 5, 3) + 1j * integers(2, 5, 3))
    g = jnp.asarray(integers(2, 5, 4) + 1j * integers(2, 5, 4))
    actual = jaxconv.conv_kernel_grad_sq_norms(x, (3, 3, 4), g)
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(actual, by_gradients(x, (3, 3, 4), g))


def test_derivatives(integers):
    x, kernel_shape, g, _ = operands("wide", integers)
    own, expected = (
        jax.grad(lambda x, fn=fn: fn(x, kernel_shape, g).sum())(x)
        for fn in (jaxconv.conv_kernel_grad_sq_norms, by_gradients)
    )
    np.testing.assert_allclose(own, expected, rtol=1e-5)


def test_patches_are_read_in_the_precision_asked_for():
    norm = functools.partial(jaxconv.conv_kernel_grad_sq_norms, precision="highest")
    x = jax.ShapeDtypeStruct((2, 3, 3, 16), jnp.float32)
    program = jax.make_jaxpr(lambda x: norm(x, (3, 3, 16, 16), x))(x)
    (reading,) = [e for e in program.eqns if e.primitive.name == "jaxconv_unfold"]
    assert reading.params["problem"].precision[0] is lax.Precision.HIGHEST


def test_what_does_not_fit_is_refused():
    x, g = jnp.ones((2, 8, 3)), jnp.ones((2, 8, 5))
    with pytest.raises(ValueError, match="conv_kernel_grad_sq_norms: g must have"):
        jaxconv.conv_kernel_grad_sq_norms(x, (3, 3, 4), g)
    with pytest.raises(TypeError, match="Did you mean strides"):
        jaxconv.conv_kernel_grad_sq_norms(x, (3, 3, 5), g, stride=1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="no kernel to round, but got cast_kernel=True"):
        jaxconv.conv_kernel_grad_sq_norms(x, (3, 3, 5), g, cast_kernel=True)
