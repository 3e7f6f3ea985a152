"""Short floats: sums in float32, rounded once, and kernels of a wider dtype."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv.testing import draw, reference_conv_vjp

SHORT = [jnp.bfloat16, jnp.float16]
NHWC = ("NHWC", "HWIO", "NHWC")
LAYERS = {
    "dense": ((4, 12, 12, 8), (3, 3, 8, 16), {}),
    "strided": ((4, 12, 12, 8), (3, 3, 8, 16), {"strides": 2}),
    "grouped": ((4, 12, 12, 8), (3, 3, 4, 16), {"groups": 2}),
    "depthwise": ((4, 12, 12, 8), (3, 3, 1, 8), {"groups": 8}),
    "pointwise": ((4, 12, 12, 8), (1, 1, 8, 16), {}),
}


def case(name, dtype) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Operands of a layer, its options, and lax's geometry."""
    x_shape, kernel_shape, options = LAYERS[name]
    x, kernel = draw(0, dtype, x_shape, kernel_shape)
    stride = options.get("strides", 1)
    outputs = -(-x_shape[1] // stride)
    (g,) = draw(1, dtype, (x_shape[0], outputs, outputs, kernel_shape[-1]))
    geometry = {
        "window_strides": (stride, stride),
        "padding": "SAME",
        "dimension_numbers": NHWC,
        "feature_group_count": options.get("groups", 1),
    }
    return tuple(map(jnp.asarray, (x, kernel, g))), options, geometry


def error(result, reference):
    reference = np.asarray(reference)
    difference = np.asarray(result).astype(float) - reference
    return np.abs(difference).max() / np.abs(reference).max()


def results(conv, x, kernel, g, **options):
    y, pull_back = jax.vjp(functools.partial(conv, **options), x, kernel)
    return y, *pull_back(g.astype(y.dtype))


@pytest.mark.parametrize("preferred", [None, jnp.float32])
@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("name", LAYERS)
def test_errors_are_no_larger_than_those_of_lax(name, dtype, preferred):
    (x, kernel, g), _, geometry = case(name, dtype)
    references = reference_conv_vjp(x, kernel, g, **geometry)
    geometry["preferred_element_type"] = preferred
    own = results(jaxconv.conv_general_dilated, x, kernel, g, **geometry)
    stock = results(lax.conv_general_dilated, x, kernel, g, **geometry)
    for result, other, reference in zip(own, stock, references, strict=True):
        assert result.dtype == other.dtype
        # That of the result, or of sums in float32, whose order is the processor's.
        rounded = max(jnp.finfo(result.dtype).eps / 2, jnp.finfo(jnp.float32).eps)
        assert error(result, reference) <= max(error(other, reference), rounded) * 1.01


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_of_a_wide_kernel_is_never_rounded(name, dtype):
    (x, kernel, g), options, geometry = case(name, dtype)
    wide = kernel.astype(jnp.float32) * (1 + 2.0**-20)  # rounds to the kernel
    *_, reference = reference_conv_vjp(x, kernel, g, **geometry)
    options = {**options, "cast_kernel": True}
    layer = functools.partial(jaxconv.conv_forward, **options)
    y, pull_back = jax.vjp(lambda k, x: layer({"kernel": k}, x), wide, x)
    np.testing.assert_array_equal(y, layer({"kernel": kernel}, x))
    dkernel, dx = pull_back(g)
    assert (y.dtype, dx.dtype, dkernel.dtype) == (dtype, dtype, jnp.float32)
    assert error(dkernel, reference) < 2e-6  # and not 4e-3 or 5e-4
    params, own = jaxconv.conv_vjp({"kernel": wide}, x, g, **options)
    np.testing.assert_array_equal(jax.tree.leaves(params)[0], dkernel)
    np.testing.assert_array_equal(own, dx)
    options.pop("cast_kernel")
    alone = jaxconv.conv_kernel_grad(x, kernel.shape, g, dtype=jnp.float32, **options)
    np.testing.assert_array_equal(alone, dkernel)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("layer", [jaxconv.conv_forward, jaxconv.conv])
def test_the_gradient_of_a_bias_is_added_up_in_float32(layer, dtype, wide):
    g = jnp.ones((1, 250, 250, 1), dtype)  # no sum of bfloat16s gets beyond 256
    bias = jnp.zeros(1, jnp.float32 if wide else dtype)
    params = jaxconv.ConvParams(jnp.ones((1, 1, 1, 1), dtype), bias)
    _, pull_back = jax.vjp(layer, params, g)
    (dparams, _), own = pull_back(g), cast(Any, jaxconv.conv_vjp(params, g, g)[0])
    assert dparams.bias.dtype == own.bias.dtype == bias.dtype
    expected = jnp.asarray([62_500.0]).astype(bias.dtype)
    np.testing.assert_array_equal(dparams.bias, expected)
    np.testing.assert_array_equal(own.bias, expected)
    assert np.isfinite(float(own.bias[0]))


def test_a_wide_bias_may_have_a_gradient_that_no_activation_could():
    x = jnp.zeros((1, 300, 300, 1), jnp.float16)
    params = jaxconv.ConvParams(jnp.ones((1, 1, 1, 1)), jnp.zeros(1))
    g = jnp.ones_like(x)
    dparams: Any = jaxconv.conv_vjp(params, x, g, cast_kernel=True)[0]
    assert float(dparams.bias[0]) == 300 * 300  # the largest float16 is 65504


def test_wide_kernels_of_transposed_layers_and_of_single_examples():
    (x, kernel, _), _, _ = case("dense", jnp.bfloat16)
    wide = kernel.astype(jnp.float32)

    def loss(kernel, x):
        y = jaxconv.conv_transpose_forward(
            {"kernel": kernel}, x, strides=2, cast_kernel=True
        )
        return y.astype(jnp.float32).sum()

    together = jax.grad(loss)(wide, x)
    single = jax.vmap(jax.grad(loss), (None, 0))(wide, x)
    assert together.dtype == single.dtype == jnp.float32
    np.testing.assert_allclose(single.sum(0), together, rtol=1e-5, atol=1e-3)


def test_kernels_are_rounded_if_asked_for_alone():
    x = jnp.ones((1, 4, 2), jnp.bfloat16)
    with pytest.raises(TypeError, match="x and kernel must have the same dtype"):
        jaxconv.conv_forward({"kernel": jnp.ones((3, 2, 2))}, x)
    with pytest.raises(TypeError, match="x and kernel must have the same dtype"):
        kernel = jnp.ones((3, 2, 2), jnp.int32)
        jaxconv.conv_forward({"kernel": kernel}, x, cast_kernel=True)


def test_short_kernels_of_another_range():
    x, g = jnp.full((64, 64, 1), 300, jnp.float16), jnp.ones((64, 64, 1), jnp.float16)
    params = {"kernel": jnp.zeros((1, 1, 1), jnp.bfloat16)}
    dparams, _ = jaxconv.conv_vjp(params, x, g, cast_kernel=True)
    (dkernel,) = jax.tree.leaves(dparams)
    assert dkernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(dkernel[0, 0, 0]), 64 * 64 * 300, rtol=4e-3)


def test_the_input_gradient_of_a_cast_kernel_is_of_the_cotangents_dtype():
    (x, kernel, g), options, _ = case("dense", jnp.bfloat16)
    wide = kernel.astype(jnp.float32)
    dx = jaxconv.conv_input_grad(x.shape, wide, g, cast_kernel=True, **options)
    assert dx.dtype == jnp.bfloat16
    np.testing.assert_array_equal(dx, jaxconv.conv_input_grad(x.shape, kernel, g))


def test_the_input_gradient_is_that_of_the_vjp_where_sums_are_kept():
    (x, kernel, g), options, _ = case("dense", jnp.bfloat16)
    options = {**options, "cast_kernel": True, "preferred_element_type": jnp.float32}
    wide, g = kernel.astype(jnp.float32), g.astype(jnp.float32)
    _, dx = jaxconv.conv_vjp({"kernel": wide}, x, g, **options)
    alone = jaxconv.conv_input_grad(x.shape, wide, g, dtype=x.dtype, **options)
    assert dx is not None
    assert alone.dtype == dx.dtype == jnp.bfloat16
    np.testing.assert_array_equal(alone, dx)
    with pytest.raises(TypeError, match="conv_input_grad: dtype must be of the kind"):
        jaxconv.conv_input_grad(x.shape, wide, g, dtype=jnp.complex64, **options)


@pytest.mark.parametrize("dtype", ["float33", jnp.int32, jnp.complex64])
def test_a_wrong_dtype_of_the_gradient_is_named(dtype):
    x, g = jnp.ones((1, 8, 3)), jnp.ones((1, 8, 4))
    with pytest.raises(TypeError, match="conv_kernel_grad: dtype must be"):
        jaxconv.conv_kernel_grad(x, (3, 3, 4), g, dtype=dtype)


@pytest.mark.parametrize("dtype", SHORT)
def test_patches_are_added_up_in_float32(dtype):
    x = jax.ShapeDtypeStruct((1, 1, 20, 20), dtype)
    options = {"filter_shape": (7, 7), "window_strides": (1, 1), "padding": "SAME"}
    unfold = functools.partial(jaxconv.lax.conv_general_dilated_patches, **options)
    values = np.random.default_rng(0).uniform(1, 2, (1, 49, 20, 20))
    y = jnp.asarray(values, dtype)
    expected = jaxconv.fold(y.astype(jnp.float32), x.shape, **options)
    for result in (
        jaxconv.fold(y, x.shape, **options),
        jax.linear_transpose(unfold, x)(y)[0],
    ):
        assert result.dtype == dtype
        assert error(result, expected) <= float(jnp.finfo(dtype).eps)
